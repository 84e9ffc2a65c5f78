use super::*;
use crate::error::CodecError;
use proptest::prelude::*;

/// What `CompressorFactory` of RocketMQ 5.3.3 made of [`paid`], at level 5.
const BY_ROCKETMQ: [(Compression, i32, &str); 3] = [
    (
        Compression::Zlib,
        0x300,
        "785eedcdab0d8030140040cf146f04fefb342902555204eb93209f469e3d73add7a3c7184fb9e32a671dda07538639c3\
         9261cdb065d83368b55aad56abd56ab55aad56abd56ab5dadfda179a909a30",
    ),
    (
        Compression::Lz4,
        0x100,
        "04224d186070734a000000f2026f7264657220302077617320706169640a11001c3111001c3211001c3311001c341100\
         1c3511001c3611000f7700ffffffffffffffffffffffffffffffffffffff6a50706169640a00000000",
    ),
    (
        Compression::Zstd,
        0x200,
        "28b52ffd0058ec050066542813b0251903e0340c8281f0c3a4929222f592733126001f001f0053ee72ca5d4eb9cb2977\
         39e52ea7dce594bb9c729753ee721a8a00211804a230320600c52020b9cb297739e52ea7dce594bb9c729753ee72ca5d\
         4eb9cb297739e52ea7dc652ea7dce594bb9c729753ee72ca5d4eb9cb297739e52ea7dce594bb9c729753431120048340\
         1486cb297739e52ea7dce594bb9c729753ee72ca5d4eb9cb297739e501812ba811e0efbf01e1cf01112804ef1f492699\
         611a12505501010000",
    ),
];

fn codecs() -> impl Iterator<Item = Compression> {
    let all = BY_ROCKETMQ.map(|(compression, ..)| compression);
    all.into_iter().filter(|compression| compression.is_available())
}

fn paid() -> Vec<u8> {
    let lines = (0..300).map(|number| format!("order {} was paid\n", number % 7));
    lines.collect::<String>().into_bytes()
}

fn bytes_of(hex: &str) -> Vec<u8> {
    let digits = hex.as_bytes().chunks_exact(2);
    digits.map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn why(refused: Result<Vec<u8>, Error>) -> CodecError {
    match refused {
        Err(Error::Codec { what, .. }) => what,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_rocketmq_compressed_is_read_and_the_bits_are_the_same() {
    for (compression, bits, hex) in BY_ROCKETMQ {
        assert_eq!(compression.sys_flag(), SysFlag(0x1 | bits));
        assert_eq!(compression.sys_flag().compression(), Some(compression));
        if compression.is_available() {
            assert_eq!(compression.decompress(&bytes_of(hex), 5100).unwrap(), paid());
        }
    }
}

#[test]
fn a_body_that_is_cut_short_anywhere_is_refused() {
    for (compression, _, hex) in BY_ROCKETMQ {
        if !compression.is_available() {
            continue;
        }
        for whole in [bytes_of(hex), compression.compress(&paid()).unwrap()] {
            for len in 0..whole.len() {
                let cut = why(compression.decompress(&whole[..len], 1 << 20));
                assert!(
                    matches!(cut, CodecError::Malformed { .. }),
                    "{compression:?} {len}: {cut:?}"
                );
            }
        }
    }
}

#[test]
fn a_bomb_gives_no_more_than_is_allowed() {
    let zeros = vec![0; 8 << 20];
    for compression in codecs() {
        let bomb = compression.compress(&zeros).unwrap();
        assert!(bomb.len() < zeros.len() / 200, "{compression:?}: {}", bomb.len());
        for max in [0, 1, 4096, zeros.len() - 1] {
            let refused = compression.decompress(&bomb, max);
            assert_eq!(why(refused), CodecError::TooLong { max });
        }
        let some = compression.decode(&bomb, 1001).unwrap();
        assert!(some.capacity() <= 1 << 20, "{compression:?} took {} bytes", some.capacity());
        assert_eq!(compression.decompress(&bomb, zeros.len()).unwrap().len(), zeros.len());
    }
}

#[test]
fn what_this_build_cannot_do_says_which_feature_it_takes() {
    for (compression, _, hex) in BY_ROCKETMQ {
        if !compression.is_available() {
            let refused = compression.decompress(&bytes_of(hex), 1 << 20).unwrap_err().to_string();
            let feature = format!("{compression:?}").to_lowercase();
            assert!(refused.contains(&format!("feature `{feature}`")), "{refused}");
            assert!(compression.compress(b"x").is_err());
        }
    }
    assert_eq!(why(Compression::Unknown(5).decompress(b"x", 1)), CodecError::Unknown);
}

#[test]
fn only_a_body_that_is_there_and_compressed_is_decompressed() {
    assert_eq!(decoded(b"", SysFlag::COMPRESSED, 0).unwrap(), &b""[..]);
    let long = decoded(b"longer than allowed", SysFlag::default(), 3).unwrap();
    assert!(matches!(long, Cow::Borrowed(b"longer than allowed")));
    // The bits of the type mean nothing by themselves.
    let raw = decoded(b"raw", SysFlag::COMPRESSION_ZSTD, 3).unwrap();
    assert!(matches!(raw, Cow::Borrowed(b"raw")));
    assert!(decoded(b"raw", SysFlag::COMPRESSED, 3).is_err());
}

proptest! {
    #[test]
    fn what_was_compressed_comes_back(
        word in prop::collection::vec(any::<u8>(), 0..50),
        times in 0usize..300,
    ) {
        let body = word.repeat(times);
        for compression in codecs() {
            let compressed = compression.compress(&body).unwrap();
            prop_assert_eq!(&compression.decompress(&compressed, body.len()).unwrap(), &body);
        }
    }

    #[test]
    fn nothing_that_a_record_may_hold_is_more_than_an_error(
        noise in prop::collection::vec(any::<u8>(), 0..200),
        at in 0usize..500,
        bit in 0u8..8,
    ) {
        for compression in codecs() {
            let _ = compression.decompress(&noise, 1 << 20);
            let mut damaged = compression.compress(&paid()).unwrap();
            let len = damaged.len();
            damaged[at % len] ^= 1 << bit;
            if let Ok(body) = compression.decompress(&damaged, 1 << 20) {
                prop_assert!(body.len() <= 1 << 20);
            }
        }
    }
}
