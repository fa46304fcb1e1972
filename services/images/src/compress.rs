//! Archives as they come: plain, gzip or zstd, told apart by their first bytes, never by a name.

use std::io::{self, BufRead, BufReader, Read};

/// How content is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

/// Windows larger than 128 MiB are refused: a stranger chooses how much memory is needed.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

impl Compression {
    /// What these first bytes announce.
    #[must_use]
    pub fn detect(first: &[u8]) -> Self {
        match first {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            _ => Self::None,
        }
    }

    /// The media type of a layer that is compressed so.
    #[must_use]
    pub fn layer_media_type(self) -> &'static str {
        match self {
            Self::None => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// Reads `inner` uncompressed; says how it was compressed.
///
/// # Errors
/// Whatever reading gives; `InvalidData` later, from the reader, when the content is damaged.
pub fn reader<'a>(inner: impl Read + Send + 'a) -> io::Result<(Compression, Box<dyn Read + Send + 'a>)> {
    let mut inner = BufReader::with_capacity(128 << 10, inner);
    let compression = Compression::detect(inner.fill_buf()?);
    let reader: Box<dyn Read + Send + 'a> = match compression {
        Compression::None => Box::new(inner),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(inner)),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(inner)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
            Box::new(decoder)
        }
    };
    Ok((compression, reader))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn the_first_bytes_tell_the_compression_and_damage_is_an_error() {
        let text = b"some text, some text, some text".repeat(50);
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(&text).unwrap();
        let gz = gz.finish().unwrap();
        let zst = zstd::encode_all(&text[..], 1).unwrap();
        for (bytes, kind) in [(text.clone(), Compression::None), (gz, Compression::Gzip), (zst, Compression::Zstd)] {
            let (found, mut r) = reader(&bytes[..]).unwrap();
            let mut out = Vec::new();
            r.read_to_end(&mut out).unwrap();
            assert_eq!((found, &out), (kind, &text));
            if kind != Compression::None {
                let (_, mut r) = reader(&bytes[..bytes.len() - 5]).unwrap();
                assert!(r.read_to_end(&mut Vec::new()).is_err(), "{kind:?} cut short");
            }
        }
    }
}
