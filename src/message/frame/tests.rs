use super::super::testing::*;
use super::*;
use proptest::prelude::*;

fn error(bytes: &[u8], physical_offset: u64, remaining: u64) -> Corruption {
    frame(bytes, physical_offset, remaining).unwrap_err()
}

#[test]
fn a_blank_fills_the_rest_of_the_segment() {
    assert_eq!(blank(1000), [0x00, 0x00, 0x03, 0xE8, 0xCB, 0xD4, 0x31, 0x94]);
    for size in [8, 9, 1000, i32::MAX as u32] {
        let bytes = blank(size);
        let found = frame(&bytes, 5, size.into());
        assert!(matches!(found, Ok(Frame::Blank { size: found }) if found == size));
    }
    let wrong = |value| Corruption::Length { field: "blank size", value };
    assert_eq!(error(&blank(1000), 0, 999), wrong(1000));
    assert_eq!(error(&blank(1000), 0, 1001), wrong(1000));
    assert_eq!(error(&blank(u32::MAX), 0, u32::MAX.into()), wrong(-1));
}

#[test]
fn a_record_leaves_room_for_a_blank() {
    assert!(matches!(frame(&WORKED, 0, 112), Ok(Frame::Record(record)) if record.size() == 104));
    for remaining in [104, 111] {
        let wrong = Corruption::Length { field: "record size", value: 104 };
        assert_eq!(error(&WORKED, 0, remaining), wrong);
        assert_eq!(error(&WORKED[..50], 0, remaining), wrong);
    }
}

#[test]
fn a_record_lies_where_it_says() {
    assert_eq!(error(&WORKED, 104, 1000), Corruption::Offset { stored: 0, actual: 104 });
}

#[test]
fn only_bytes_that_exist_are_asked_for() {
    assert_eq!(error(&WORKED[..50], 0, 1000), Corruption::Truncated { needed: 104, available: 50 });
    assert_eq!(error(&[], 0, 8), Corruption::Truncated { needed: 8, available: 0 });
    for remaining in 0..8 {
        let field = "rest of the segment";
        assert_eq!(error(&[], 0, remaining), Corruption::Length { field, value: remaining as i64 });
    }
}

#[test]
fn what_was_never_written_has_no_magic_code() {
    assert_eq!(error(&[0; 64], 0, 64), Corruption::Magic { found: 0 });
}

proptest! {
    #[test]
    fn asking_again_with_more_comes_to_an_end(
        message in any_message(),
        stamp in any_stamp(),
        flip in (any::<prop::sample::Index>(), any::<u8>()),
        room in 0..200usize,
    ) {
        let mut segment = encode(&message, true, &stamp);
        let at = flip.0.index(segment.len());
        segment[at] ^= flip.1;
        segment.resize(segment.len() + room, 0);
        let remaining = segment.len() as u64;
        let mut fetched = 0;
        while let Err(Corruption::Truncated { needed, available }) =
            frame(&segment[..fetched], stamp.physical_offset, remaining)
        {
            prop_assert_eq!(available, fetched as u64);
            prop_assert!(available < needed && needed <= remaining);
            fetched = needed as usize;
        }
    }
}
