//! The manual: what one does with this crate, and what it promises. Pages only, no code.
//!
//! | page | answers |
//! |---|---|
//! | [`joining`] | How does my program become a node, and what must be kept? What can go wrong at the start? |
//! | [`registering`] | How do I offer a service, with checks, and take it away without anybody noticing? |
//! | [`watching`] | How do I find services, and learn of changes? |
//! | [`connecting`] | How do I call a service with identity, and take calls? |
//! | [`identity`] | Who is who? Where do keys and certificates live, and what does a certificate allow? |
//! | [`failures`] | What exactly holds after a crash, a stall, a partition, a restart, a lost server, a clock jump? |
//! | [`tuning`] | Which numbers can be changed, what do they cost, and when should they be? |
//!
//! Each of the first four has a program in `examples/` that runs against `mesh dev`.

#[doc = include_str!("manual/joining.md")]
pub mod joining {}

#[doc = include_str!("manual/registering.md")]
pub mod registering {}

#[doc = include_str!("manual/watching.md")]
pub mod watching {}

#[doc = include_str!("manual/connecting.md")]
pub mod connecting {}

#[doc = include_str!("manual/identity.md")]
pub mod identity {}

#[doc = include_str!("manual/failures.md")]
pub mod failures {}

#[doc = include_str!("manual/tuning.md")]
pub mod tuning {}
