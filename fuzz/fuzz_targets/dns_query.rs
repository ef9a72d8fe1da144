//! DNS requests from anybody: the parser and the whole answer path. Replies must decode.
#![no_main]

use std::cell::RefCell;

use dns::fuzz::Answers;
use hickory_proto::op::Message;
use libfuzzer_sys::fuzz_target;

thread_local! {
    static ANSWERS: RefCell<Answers> = RefCell::new(Answers::new());
}

fuzz_target!(|request: &[u8]| {
    ANSWERS.with_borrow_mut(|answers| {
        for reply in answers.to(request) {
            Message::from_vec(&reply).expect("a reply decodes");
        }
    });
});
