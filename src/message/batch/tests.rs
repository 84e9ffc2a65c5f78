use super::super::testing::any_message;
use super::super::{Properties, SysFlag};
use super::*;
use proptest::prelude::*;

const WORKED: [u8; 57] = *b"\
    \x00\x00\x00\x22\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x05hello\
    \x00\x07TAGS\x01A\x02\
    \x00\x00\x00\x17\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01x\x00\x00";

fn decode(bytes: &[u8]) -> Result<Vec<BatchEntry<'_>>, Corruption> {
    decode_batch(bytes).collect()
}

#[test]
fn writes_and_reads_the_batch_of_the_format_page() {
    let messages = [Message::new("T", "hello").tag("A"), Message::new("T", "x")];
    assert_eq!(encode_batch(&messages).unwrap(), WORKED);
    let batch = Message::new("T", "");
    let read: Vec<_> = decode(&WORKED).unwrap().iter().map(|e| e.to_message(&batch)).collect();
    assert_eq!(read, messages);
}

#[test]
fn a_message_takes_what_it_lacks_from_its_batch() {
    let batch = Message::new("T", "ignored")
        .queue(2)
        .flag(9)
        .sys_flag(SysFlag::MULTI_TAGS)
        .born_at(3)
        .prepared_transaction_offset(4)
        .property("CLUSTER", "c");
    let properties = PropertiesRef::new(b"TAGS\x01A");
    let message = BatchEntry { flag: 1, body: b"b", properties }.to_message(&batch);
    let expected = Message::new("T", "b")
        .queue(2)
        .flag(1)
        .sys_flag(SysFlag::MULTI_TAGS)
        .born_at(3)
        .properties(Properties::from_bytes(*b"TAGS\x01A\x02CLUSTER\x01c\x02"));
    assert_eq!(message, expected);

    let plain = BatchEntry { flag: 0, body: b"b", properties }.to_message(&Message::new("T", ""));
    assert_eq!(plain.properties_ref().as_bytes(), b"TAGS\x01A");
}

#[test]
fn lengths_must_agree() {
    let field = "batch entry size";
    for cut in [56, 40, 36] {
        assert!(decode(&WORKED[..cut]).is_err());
    }
    let mut wrong = WORKED;
    wrong[3] = 0x23;
    assert_eq!(decode(&wrong), Err(Corruption::Length { field, value: 0x23 }));
    let mut wrong = WORKED;
    wrong[16..20].fill(0xFF);
    assert_eq!(decode(&wrong), Err(Corruption::Length { field: "body length", value: -1 }));
    assert_eq!(decode_batch(&wrong).count(), 1);
}

#[test]
fn a_batch_shares_topic_and_queue() {
    let refused = |messages: &[Message]| match encode_batch(messages) {
        Err(Error::InvalidMessage(invalid)) => invalid,
        other => panic!("{other:?}"),
    };
    let first = Message::new("T", "");
    assert_eq!(refused(&[]), InvalidMessage::EmptyBatch);
    assert_eq!(refused(&[first.clone(), Message::new("U", "")]), InvalidMessage::MixedBatch);
    assert_eq!(refused(&[first.clone(), first.clone().queue(1)]), InvalidMessage::MixedBatch);
    let property = InvalidMessage::Property { name: String::new() };
    assert_eq!(refused(&[first.clone(), first.property("", "x")]), property);
}

#[test]
fn properties_fill_their_length_field() {
    let with = |len| Message::new("T", "").properties(Properties::from_bytes(vec![b'x'; len]));
    assert!(encode_batch(&[with(32_767)]).is_ok());
    assert!(matches!(
        encode_batch(&[with(32_768)]),
        Err(Error::TooLarge { what: "properties", len: 32_768, max: 32_767 })
    ));
}

proptest! {
    #[test]
    fn decoding_is_total(bytes in prop::collection::vec(prop_oneof![Just(0u8), any::<u8>()], 0..120)) {
        for entry in decode_batch(&bytes) {
            let _ = entry;
        }
    }

    #[test]
    fn round_trips(messages in prop::collection::vec(any_message(), 1..5)) {
        let carried = |m: Message| {
            Message::new("T", m.body()).flag(m.flag).properties(m.properties_ref().to_owned())
        };
        let messages: Vec<_> = messages.into_iter().map(carried).collect();
        let bytes = encode_batch(&messages).unwrap();
        let batch = Message::new("T", "");
        let read: Vec<_> = decode(&bytes).unwrap().iter().map(|e| e.to_message(&batch)).collect();
        prop_assert_eq!(read, messages);
    }
}
