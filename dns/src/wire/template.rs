//! Prepared answers and how a reply is put together from one.
//!
//! Encoding an answer happens once per change of a service; a reply is then a few copies: the header, the question
//! as it was spelt, the records in a fresh uniform order, the OPT. That works because every owner name is a pointer
//! at the question, which always starts at octet 12, and because the names that later records point at (the targets
//! of SRV and NS) are found again by where their record was just copied to. So one template serves every EDNS size,
//! every spelling and every order.

use super::{CLASS_IN, HEADER, rtype};

mod fill;

pub use fill::{Envelope, ReplyEdns, Scratch};

/// Pointer at the question's name.
const OWNER: u16 = 0xC000 | HEADER as u16;
/// Pointers have 14 bits.
const POINTER_MAX: usize = 0x3FFF;

/// A prepared answer. Built with the `push` methods, in order, then shared.
#[derive(Clone, Debug, Default)]
pub struct Template {
    rcode: u16,
    authoritative: bool,
    /// Answer records back to back.
    body: Vec<u8>,
    answers: Vec<Span>,
    /// Length of each answer record, while they are all alike and none has a target.
    stride: usize,
    /// Where a group of answers ends and the next begins, by number of answers; see [`Template::begin_group`].
    borders: Vec<u16>,
    /// Send no more answers than this, without calling the rest truncated.
    take: usize,
    alias: bool,
    extended: Option<u16>,
    authority: Vec<u8>,
    authority_count: u16,
    /// Where in `authority` or `body` the SOA serial stands.
    serial: Option<Serial>,
    targets: Vec<Target>,
    /// Additional records back to back, without owner names.
    glue: Vec<u8>,
    glue_spans: Vec<Span>,
    /// Additional records that belong to no target, whole.
    extra: Vec<u8>,
    extra_count: u16,
}

#[derive(Clone, Copy, Debug)]
struct Span {
    start: u32,
    len: u16,
    /// Offset of the target name inside the record, and its number plus one; 0 for records without.
    target_at: u16,
    target: u16,
}

#[derive(Clone, Copy, Debug)]
enum Serial {
    InAnswer(usize),
    InAuthority(usize),
}

/// A name inside an answer's data that additional records belong to.
#[derive(Clone, Copy, Debug)]
struct Target {
    /// Its records in `glue_spans`.
    first: u16,
    count: u16,
}

/// The number of a target, as [`Template::push_target`] returns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TargetId(u16);

impl Template {
    /// The most answer records a template holds; a service with more shows a random choice of them.
    pub const MAX_ANSWERS: usize = 4096;

    /// An answer without records.
    pub fn new(rcode: u16, authoritative: bool) -> Self {
        Self {
            rcode,
            authoritative,
            take: usize::MAX,
            ..Self::default()
        }
    }

    /// Answers so far.
    pub fn answers(&self) -> usize {
        self.answers.len()
    }

    /// Response code.
    pub fn rcode(&self) -> u16 {
        self.rcode
    }

    /// Gives back what was reserved beyond need.
    pub fn shrink(&mut self) {
        self.body.shrink_to_fit();
        self.answers.shrink_to_fit();
        self.authority.shrink_to_fit();
        self.targets.shrink_to_fit();
        self.glue.shrink_to_fit();
        self.glue_spans.shrink_to_fit();
    }

    /// Octets held, for a cache's bound.
    pub fn weight(&self) -> usize {
        size_of::<Self>()
            + self.body.len()
            + self.authority.len()
            + self.glue.len()
            + self.extra.len()
            + self.borders.len() * 2
            + (self.answers.len() + self.glue_spans.len()) * size_of::<Span>()
            + self.targets.len() * size_of::<Target>()
    }

    /// The answers are aliases (CNAME), of which a name can show only one (RFC 1034 §3.6.2): each reply takes one by
    /// chance.
    pub fn mark_alias(&mut self) {
        self.take = 1;
        self.alias = true;
    }

    /// Whether the answers are aliases.
    pub fn is_alias(&self) -> bool {
        self.alias
    }

    /// Sends `most` answers at most, without calling the rest truncated.
    pub fn limit(&mut self, most: usize) {
        self.take = self.take.min(most);
    }

    /// What the OPT record of a reply says besides (RFC 8914).
    pub fn set_extended(&mut self, error: u16) {
        self.extended = Some(error);
    }

    /// The extended error to send along.
    pub fn extended(&self) -> Option<u16> {
        self.extended
    }

    /// What follows is shown behind what came before: the order is random within each group only. A reply that does
    /// not hold everything leaves out the last groups first.
    pub fn begin_group(&mut self) {
        let at = self.answers.len() as u16;
        if at > 0 && self.borders.last() != Some(&at) {
            self.borders.push(at);
        }
    }

    /// Adds an answer owned by the asked name. Silently full at [`Self::MAX_ANSWERS`]; `data` above 64 KiB − 1 is
    /// left out.
    pub fn push_answer(&mut self, rtype: u16, ttl: u32, data: &[u8]) {
        self.push_record(OWNER, rtype, ttl, data, (0, 0));
    }

    /// Adds an answer owned by the name that starts at `owner_at` of the message: a tail of the question.
    pub fn push_answer_of(&mut self, owner_at: u16, rtype: u16, ttl: u32, data: &[u8]) {
        self.push_record(0xC000 | owner_at, rtype, ttl, data, (0, 0));
    }

    /// Adds an answer whose data ends with the wire name `name`, which is the target `id` that glue may belong to.
    pub fn push_answer_to(
        &mut self,
        rtype: u16,
        ttl: u32,
        prefix: &[u8],
        name: &[u8],
        id: TargetId,
    ) {
        // Owner pointer, type, class, TTL and length take 12 octets.
        let target = (12 + prefix.len() as u16, id.0 + 1);
        self.push_record(OWNER, rtype, ttl, &[prefix, name].concat(), target);
    }

    fn push_record(
        &mut self,
        owner: u16,
        rtype: u16,
        ttl: u32,
        data: &[u8],
        (target_at, target): (u16, u16),
    ) {
        if self.answers.len() == Self::MAX_ANSWERS {
            return;
        }
        let start = self.body.len();
        self.body.extend_from_slice(&owner.to_be_bytes());
        if !push_fixed(&mut self.body, rtype, ttl, data) {
            self.body.truncate(start);
            return;
        }
        let len = self.body.len() - start;
        let alike = target == 0 && (start == 0 || self.stride == len);
        self.stride = if alike { len } else { 0 };
        self.answers.push(Span {
            start: start as u32,
            len: len as u16,
            target_at,
            target,
        });
    }

    /// Makes a target; its glue follows with [`Self::push_glue`] before the next target is made.
    pub fn push_target(&mut self) -> TargetId {
        self.targets.push(Target {
            first: self.glue_spans.len() as u16,
            count: 0,
        });
        TargetId((self.targets.len() - 1) as u16)
    }

    /// Adds an additional record owned by the newest target.
    pub fn push_glue(&mut self, rtype: u16, ttl: u32, data: &[u8]) {
        let Some(target) = self.targets.last_mut() else {
            return;
        };
        let start = self.glue.len();
        if push_fixed(&mut self.glue, rtype, ttl, data) {
            target.count += 1;
            let len = (self.glue.len() - start) as u16;
            self.glue_spans.push(Span {
                start: start as u32,
                len,
                target_at: 0,
                target: 0,
            });
        }
    }

    /// Adds a record to the authority section, owned by the name at `owner_at`.
    pub fn push_authority(&mut self, owner_at: u16, rtype: u16, ttl: u32, data: &[u8]) {
        let start = self.authority.len();
        self.authority
            .extend_from_slice(&(0xC000 | owner_at).to_be_bytes());
        if push_fixed(&mut self.authority, rtype, ttl, data) {
            self.authority_count += 1;
        } else {
            self.authority.truncate(start);
        }
    }

    /// Adds a record to the additional section that goes with the whole reply; the first that are left out when there
    /// is no room. `owner` is a name on the wire, which may end in a pointer to a tail of the question.
    pub fn push_extra(&mut self, owner: &[u8], rtype: u16, ttl: u32, data: &[u8]) {
        let start = self.extra.len();
        self.extra.extend_from_slice(owner);
        if push_fixed(&mut self.extra, rtype, ttl, data) {
            self.extra_count += 1;
        } else {
            self.extra.truncate(start);
        }
    }

    /// The same, owned by the asked name.
    pub fn push_extra_of_question(&mut self, rtype: u16, ttl: u32, data: &[u8]) {
        self.push_extra(&OWNER.to_be_bytes(), rtype, ttl, data);
    }

    /// Adds the zone's SOA, to the answer when it was asked for, else to the authority section (RFC 2308).
    /// `zone_at` is where in the message the zone's own name starts, which is always a tail of the question.
    pub fn push_soa(&mut self, zone_at: u16, asked: bool, ttl: u32, minimum: u32) {
        let (data, serial) = soa(&(0xC000 | zone_at).to_be_bytes(), minimum);
        if asked {
            self.serial = Some(Serial::InAnswer(self.body.len() + 12 + serial));
            self.push_answer_of(zone_at, rtype::SOA, ttl, &data);
        } else {
            self.serial = Some(Serial::InAuthority(self.authority.len() + 12 + serial));
            self.push_authority(zone_at, rtype::SOA, ttl, &data);
        }
    }

    /// The same to the authority section, for a zone whose name is no tail of the question.
    pub fn push_foreign_soa(&mut self, zone: &[u8], ttl: u32, minimum: u32) {
        let (data, serial) = soa(zone, minimum);
        let at = self.authority.len() + zone.len() + 10 + serial;
        self.authority.extend_from_slice(zone);
        if push_fixed(&mut self.authority, rtype::SOA, ttl, &data) {
            self.authority_count += 1;
            self.serial = Some(Serial::InAuthority(at));
        }
    }
}

/// Data of a SOA record of `zone`, and where its serial is.
fn soa(zone: &[u8], minimum: u32) -> (Vec<u8>, usize) {
    let mut data = Vec::with_capacity(40);
    data.extend_from_slice(b"\x02ns");
    data.extend_from_slice(zone);
    data.extend_from_slice(b"\x0ahostmaster");
    data.extend_from_slice(zone);
    let serial = data.len();
    // Serial (filled in per reply), refresh, retry, expire: the values that Consul uses.
    for value in [0, 3600, 600, 86_400, minimum] {
        data.extend_from_slice(&u32::to_be_bytes(value));
    }
    (data, serial)
}

/// Type, class, TTL, length and data; false when the data is too long.
fn push_fixed(out: &mut Vec<u8>, rtype: u16, ttl: u32, data: &[u8]) -> bool {
    let Ok(len) = u16::try_from(data.len()) else {
        return false;
    };
    if len > u16::MAX - 16 {
        return false;
    }
    out.extend_from_slice(&rtype.to_be_bytes());
    out.extend_from_slice(&CLASS_IN.to_be_bytes());
    out.extend_from_slice(&ttl.to_be_bytes());
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(data);
    true
}

#[cfg(test)]
mod tests;
