//! Archives as somebody makes them who means harm: every header holds its checksum, so that what stands in it is looked at.

use crate::input::Input;

/// The kinds of entries that there are, and one that there is not.
const KINDS: &[u8; 16] = b"0\x005126347xgLKSV9";
/// Names that matter to somebody, besides those of the input.
const NAMES: [&str; 12] = [
    "a",
    "a/b",
    "a/b/c",
    "..",
    "../../x",
    "/x",
    "a/../b",
    "up/x",
    ".wh.a",
    "a/.wh..wh..opq",
    "manifest.json",
    "layer.tar",
];
/// Keys of extended headers that are understood somewhere.
const KEYS: [&str; 10] = [
    "path",
    "linkpath",
    "size",
    "uid",
    "mtime",
    "SCHILY.xattr.security.capability",
    "SCHILY.xattr.user.x",
    "GNU.sparse.name",
    "GNU.sparse.map",
    "comment",
];
const MOST: usize = 64;

fn name<'a>(input: &mut Input<'a>) -> &'a [u8] {
    match input.byte() {
        short @ 0..=127 => NAMES[usize::from(short) % NAMES.len()].as_bytes(),
        length => input.bytes(usize::from(length) - 128),
    }
}

fn field(header: &mut [u8; 512], at: usize, room: usize, text: &[u8]) {
    let text = &text[..text.len().min(room)];
    header[at..at + text.len()].copy_from_slice(text);
}

/// One record of an extended header: its length counts itself.
fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let bare = key.len() + value.len() + 3;
    let length = (bare..).find(|all| all.to_string().len() + bare == *all).unwrap_or(bare);
    [length.to_string().as_bytes(), b" ", key.as_bytes(), b"=", value, b"\n"].concat()
}

fn entry(input: &mut Input<'_>, out: &mut Vec<u8>) {
    let (odd, kind) = (input.byte(), KINDS[usize::from(input.byte()) % KINDS.len()]);
    let content = match kind {
        b'x' | b'g' if odd & 1 == 0 => {
            let count = input.byte() % 4;
            let one = |_| record(KEYS[usize::from(input.byte()) % KEYS.len()], input.piece());
            (0..count).flat_map(one).collect()
        }
        b'5' | b'1' | b'2' if odd & 1 == 0 => Vec::new(),
        _ => input.piece().to_vec(),
    };
    let mut header = [0; 512];
    field(&mut header, 0, 100, name(input));
    field(&mut header, 100, 8, b"0000755\0");
    field(&mut header, 108, 8, b"0000001\0");
    field(&mut header, 116, 8, b"0000002\0");
    field(&mut header, 124, 12, format!("{:011o}\0", content.len()).as_bytes());
    field(&mut header, 136, 12, b"00000000007\0");
    header[156] = kind;
    if kind == b'1' || kind == b'2' {
        field(&mut header, 157, 100, name(input));
    }
    field(&mut header, 257, 8, if odd & 2 == 0 { b"ustar\x0000" } else { b"ustar  \0" });
    if odd & 4 != 0 {
        let (at, bytes) = (usize::from(input.word()) % 512, input.piece());
        field(&mut header, at, 512 - at, bytes);
    }
    if odd & 8 == 0 {
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        field(&mut header, 148, 8, format!("{sum:06o}\0 ").as_bytes());
    }
    out.extend(header);
    out.extend(&content);
    if odd & 16 == 0 {
        out.resize(out.len().next_multiple_of(512), 0);
    }
}

/// An archive of all that is left of the input.
pub fn archive(input: &mut Input<'_>) -> Vec<u8> {
    let (mut out, whole) = (Vec::new(), input.byte());
    for _ in 0..MOST {
        if input.is_empty() {
            break;
        }
        entry(input, &mut out);
    }
    if whole & 1 == 0 {
        out.resize(out.len() + 1024, 0);
    }
    out
}
