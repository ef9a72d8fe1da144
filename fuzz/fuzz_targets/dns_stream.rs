//! DNS over TCP from anybody: framing, pipelining, cut-off frames. Replies must decode.
#![no_main]

use std::cell::RefCell;

use dns::fuzz::Answers;
use hickory_proto::op::Message;
use libfuzzer_sys::fuzz_target;

thread_local! {
    static ANSWERS: RefCell<Answers> = RefCell::new(Answers::new());
}

fuzz_target!(|octets: &[u8]| {
    ANSWERS.with_borrow_mut(|answers| {
        for reply in answers.to_stream(octets) {
            Message::from_vec(&reply).expect("a reply decodes");
        }
    });
});
