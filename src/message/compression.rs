//! Compressed bodies, as RocketMQ's clients write and read them.
//!
//! The store keeps bodies as they come; producers compress, and whoever wants to see what is inside asks
//! [`StoredMessage::decoded_body`].

use super::record::RecordRef;
use super::stored::StoredMessage;
use super::sys_flag::{Compression, SysFlag};
use crate::error::{CodecError, Error};
use std::borrow::Cow;
use std::io;

/// RocketMQ's default, of zlib's scale and of Zstandard's.
#[cfg(any(feature = "zlib", feature = "zstd"))]
const LEVEL: u8 = 5;

impl Compression {
    /// Whether this build can compress and decompress it: each has a feature of its name.
    pub const fn is_available(self) -> bool {
        match self {
            Self::Zlib => cfg!(feature = "zlib"),
            Self::Lz4 => cfg!(feature = "lz4"),
            Self::Zstd => cfg!(feature = "zstd"),
            Self::Unknown(_) => false,
        }
    }

    /// The bits of a record whose body is compressed so. RocketMQ 4.9 knows zlib alone, whatever the
    /// bits of the type say.
    pub const fn sys_flag(self) -> SysFlag {
        let kind = match self {
            Self::Zlib => SysFlag::COMPRESSION_ZLIB,
            Self::Lz4 => SysFlag::COMPRESSION_LZ4,
            Self::Zstd => SysFlag::COMPRESSION_ZSTD,
            Self::Unknown(number) => SysFlag(((number as i32) << 8) & SysFlag::COMPRESSION_MASK.0),
        };
        SysFlag::COMPRESSED.with(kind)
    }

    /// Compresses `body`, zlib and Zstandard at level 5, which is RocketMQ's default.
    ///
    /// # Errors
    /// [`Error::Codec`] if the feature is off.
    pub fn compress(self, body: &[u8]) -> Result<Vec<u8>, Error> {
        self.check()?;
        self.encode(body).map_err(|error| self.malformed(&error))
    }

    /// Decompresses what [`compress`](Self::compress) or a client of RocketMQ made. Takes memory for
    /// `max` bytes and some buffers at most, whatever `bytes` are.
    ///
    /// # Examples
    /// ```
    /// # #[cfg(feature = "zlib")] {
    /// use duralog::message::Compression;
    ///
    /// let compressed = Compression::Zlib.compress(&[7; 100_000])?;
    /// assert!(compressed.len() < 1000);
    /// assert_eq!(Compression::Zlib.decompress(&compressed, 100_000)?, [7; 100_000]);
    /// assert!(Compression::Zlib.decompress(&compressed, 99_999).is_err());
    /// # }
    /// # Ok::<(), duralog::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Codec`] if the feature is off, if there are more than `max` bytes, or if these are not
    /// what the codec makes.
    pub fn decompress(self, bytes: &[u8], max: usize) -> Result<Vec<u8>, Error> {
        self.check()?;
        // One more, to tell that there are more.
        let decoded = self.decode(bytes, max.saturating_add(1));
        let body = decoded.map_err(|error| self.malformed(&error))?;
        if body.len() > max {
            return Err(self.refused(CodecError::TooLong { max }));
        }
        Ok(body)
    }

    /// Refuses what this build cannot do.
    pub(crate) fn check(self) -> Result<(), Error> {
        let feature = match self {
            _ if self.is_available() => return Ok(()),
            Self::Unknown(_) => return Err(self.refused(CodecError::Unknown)),
            Self::Zlib => "zlib",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        };
        Err(self.refused(CodecError::Missing { feature }))
    }

    fn refused(self, what: CodecError) -> Error {
        Error::Codec { compression: self, what }
    }

    fn malformed(self, error: &io::Error) -> Error {
        self.refused(CodecError::Malformed { what: error.to_string() })
    }

    fn encode(self, body: &[u8]) -> io::Result<Vec<u8>> {
        match self {
            #[cfg(feature = "zlib")]
            Self::Zlib => zlib::encode(body),
            #[cfg(feature = "lz4")]
            Self::Lz4 => lz4::encode(body),
            #[cfg(feature = "zstd")]
            Self::Zstd => zstd_frames::encode(body),
            #[allow(unreachable_patterns, reason = "it depends on the features")]
            _ => Ok(body.to_vec()),
        }
    }

    /// Decompresses at most `limit` bytes.
    #[cfg_attr(
        not(any(feature = "zlib", feature = "lz4", feature = "zstd")),
        expect(unused_variables)
    )]
    fn decode(self, bytes: &[u8], limit: usize) -> io::Result<Vec<u8>> {
        match self {
            #[cfg(feature = "zlib")]
            Self::Zlib => zlib::decode(bytes, limit),
            #[cfg(feature = "lz4")]
            Self::Lz4 => lz4::decode(bytes, limit),
            #[cfg(feature = "zstd")]
            Self::Zstd => zstd_frames::decode(bytes, limit),
            #[allow(unreachable_patterns, reason = "it depends on the features")]
            _ => Ok(bytes.to_vec()),
        }
    }
}

/// A body as its producer gave it, at most `max` bytes of it if it had to be decompressed.
fn decoded(body: &[u8], sys_flag: SysFlag, max: usize) -> Result<Cow<'_, [u8]>, Error> {
    match sys_flag.compression() {
        // RocketMQ decompresses nothing where there is nothing.
        Some(compression) if !body.is_empty() => compression.decompress(body, max).map(Cow::Owned),
        _ => Ok(Cow::Borrowed(body)),
    }
}

impl StoredMessage {
    /// The body as its producer gave it: decompressed, if it is stored compressed. Takes memory for `max`
    /// bytes and some buffers at most; a body that is stored as it was is given whatever its length.
    ///
    /// # Errors
    /// [`Error::Codec`] if it is compressed and the feature for that is off, if there are more than
    /// `max` bytes, or if it is not what `sys_flag` says it is.
    pub fn decoded_body(&self, max: usize) -> Result<Cow<'_, [u8]>, Error> {
        decoded(&self.body, self.sys_flag, max)
    }
}

impl<'a> RecordRef<'a> {
    /// The body as its producer gave it: decompressed, if it is stored compressed. Takes memory for `max`
    /// bytes and some buffers at most; a body that is stored as it was is given whatever its length.
    ///
    /// # Errors
    /// As [`StoredMessage::decoded_body`].
    pub fn decoded_body(&self, max: usize) -> Result<Cow<'a, [u8]>, Error> {
        decoded(self.body(), self.sys_flag(), max)
    }
}

#[cfg(any(feature = "zlib", feature = "lz4", feature = "zstd"))]
fn cut_short() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the end is missing")
}

#[cfg(any(feature = "lz4", feature = "zstd"))]
fn read_up_to(from: impl io::Read, limit: usize) -> io::Result<Vec<u8>> {
    use io::Read;
    let mut body = Vec::new();
    from.take(limit as u64).read_to_end(&mut body)?;
    Ok(body)
}

#[cfg(feature = "zlib")]
mod zlib {
    use super::{LEVEL, cut_short};
    use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
    use std::io;

    const PIECE: usize = 16 << 10;

    pub(super) fn encode(body: &[u8]) -> io::Result<Vec<u8>> {
        let mut encoder = Compress::new(Compression::new(LEVEL.into()), true);
        let mut encoded = Vec::with_capacity(body.len() / 4 + 64);
        loop {
            let rest = body.get(encoder.total_in() as usize..).unwrap_or_default();
            match encoder.compress_vec(rest, &mut encoded, FlushCompress::Finish)? {
                Status::StreamEnd => return Ok(encoded),
                _ => encoded.reserve(PIECE),
            }
        }
    }

    /// Not with flate2's reader, to which a stream that is cut short is one that ends.
    pub(super) fn decode(bytes: &[u8], limit: usize) -> io::Result<Vec<u8>> {
        let mut decoder = Decompress::new(true);
        let mut body = Vec::new();
        while body.len() < limit {
            // Pieces that grow with what was found, so that a body is copied a few times at most.
            body.reserve(body.len().clamp(PIECE, 1 << 20));
            let (read, len) = (decoder.total_in(), body.len());
            let rest = bytes.get(read as usize..).unwrap_or_default();
            if decoder.decompress_vec(rest, &mut body, FlushDecompress::None)? == Status::StreamEnd
            {
                return Ok(body);
            }
            if decoder.total_in() == read && body.len() == len {
                return Err(cut_short());
            }
        }
        Ok(body)
    }
}

#[cfg(feature = "lz4")]
mod lz4 {
    use super::{cut_short, read_up_to};
    use lz4_flex::frame::{FrameDecoder, FrameEncoder};
    use std::io::{self, ErrorKind, Read, Write};

    pub(super) fn encode(body: &[u8]) -> io::Result<Vec<u8>> {
        let mut encoder = FrameEncoder::new(Vec::with_capacity(body.len() / 4 + 64));
        encoder.write_all(body)?;
        Ok(encoder.finish()?)
    }

    pub(super) fn decode(bytes: &[u8], limit: usize) -> io::Result<Vec<u8>> {
        read_up_to(FrameDecoder::new(Whole(bytes)), limit)
    }

    /// To the decoder, a frame without its end is one that ends; nothing is read behind a whole one.
    struct Whole<'a>(&'a [u8]);

    impl Read for Whole<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            match self.0.read(buf)? {
                // Of another kind, the decoder would keep it to itself.
                0 if !buf.is_empty() => Err(io::Error::new(ErrorKind::InvalidData, cut_short())),
                read => Ok(read),
            }
        }
    }
}

#[cfg(feature = "zstd")]
mod zstd_frames {
    use super::{LEVEL, cut_short, read_up_to};
    use std::io;
    use zstd::stream::read::Decoder;

    pub(super) fn encode(body: &[u8]) -> io::Result<Vec<u8>> {
        zstd::stream::encode_all(body, LEVEL.into())
    }

    pub(super) fn decode(bytes: &[u8], limit: usize) -> io::Result<Vec<u8>> {
        if bytes.is_empty() {
            return Err(cut_short());
        }
        read_up_to(Decoder::with_buffer(bytes)?, limit)
    }
}

#[cfg(test)]
mod tests;
