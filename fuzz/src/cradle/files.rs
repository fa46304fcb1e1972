//! What the monitor reads before a guest runs: a bundle, and a template's files.

use super::devices::file;
use crate::input::Input;
use cradle::template::{Identity, Template};

/// A bundle: what is taken can be written and is taken again.
pub fn bundle(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(bundle) = cradle::bundle::parse(text) {
        let again = serde_json::to_string(&bundle).unwrap_or_default();
        assert!(cradle::bundle::parse(&again).is_ok(), "a bundle is written as none: {again}");
        assert!((1..=64).contains(&bundle.vcpus) && bundle.disks.len() <= cradle::bundle::MAX_DEVICES);
    }
}

/// A template whose identity fits: its pieces lie in its memory, whatever they say.
pub fn template(data: &[u8]) {
    const HEAD: &[u8] = b"kraudtp2";
    // The identity that the file names is the one that is wanted.
    let Ok(identity) = Identity::read(&mut &*data) else { return };
    let mut named = Vec::new();
    identity.write(&mut named);
    let mut rest = Input::new(data.get(named.len()..).unwrap_or_default());
    let content = vec![3; usize::from(rest.byte()) << 12];
    let state = [HEAD, &named, rest.rest()].concat();
    // Registers are words of any value: they need not come out of the input.
    let state = [state, vec![0; 8192]].concat();
    if let Ok(template) = Template::read(file(&content), file(&state), &identity) {
        for bytes in [1 << 16, 1 << 20] {
            let Ok(memory) = template.memory(bytes, false) else { continue };
            assert!(template.mapped().all(|(start, len)| start.checked_add(len).is_some_and(|end| end <= bytes)));
            let _ = template.tell(&memory, vec![7; 100], 2);
        }
    }
}
