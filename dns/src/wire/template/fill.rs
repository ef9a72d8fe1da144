//! From a prepared answer to the octets of a reply.

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::{POINTER_MAX, Serial, Span, Template};
use crate::wire::message::Header;
use crate::wire::{HEADER, name, rcode, rtype};

/// The OPT record of a reply.
#[derive(Clone, Copy, Debug)]
pub struct ReplyEdns {
    /// The largest request that we take over UDP.
    pub payload: u16,
    /// Echo of the asker's bit.
    pub dnssec_ok: bool,
    /// An extended error (RFC 8914).
    pub error: Option<u16>,
    /// A whole cookie (RFC 7873).
    pub cookie: Option<[u8; 24]>,
}

impl ReplyEdns {
    fn len(&self) -> usize {
        11 + self.options()
    }

    /// Octets of the options.
    fn options(&self) -> usize {
        self.error.map_or(0, |_| 6) + self.cookie.map_or(0, |cookie| 4 + cookie.len())
    }

    fn write(&self, out: &mut Writer<'_>, rcode: u16) {
        out.put(&[0]);
        out.put(&rtype::OPT.to_be_bytes());
        out.put(&self.payload.to_be_bytes());
        out.put(&[(rcode >> 4) as u8, 0, u8::from(self.dnssec_ok) << 7, 0]);
        out.put(&(self.options() as u16).to_be_bytes());
        // Each option: its code, its length, its data.
        if let Some(cookie) = &self.cookie {
            out.put(&[0, 10, 0, cookie.len() as u8]);
            out.put(cookie);
        }
        if let Some(code) = self.error {
            out.put(&[0, 15, 0, 2, (code >> 8) as u8, code as u8]);
        }
    }
}

/// What a reply takes from the request and from the transport rather than from the answer.
#[derive(Clone, Copy, Debug)]
pub struct Envelope<'q> {
    /// The request's header.
    pub header: Header,
    /// The question's octets, echoed as they were spelt; empty when none could be read.
    pub question: &'q [u8],
    /// The OPT record, when the asker sent one.
    pub edns: Option<ReplyEdns>,
    /// Octets the asker can take.
    pub limit: usize,
    /// Recursion available.
    pub recursion: bool,
    /// Answers to send at most, without saying so (`usize::MAX`: no such limit).
    pub max_answers: usize,
    /// Set TC when answers had to be left out.
    pub say_truncated: bool,
    /// As Consul: show no answer whose additional records do not fit (else they alone are left out where all answers fit,
    /// RFC 2181 §9), and no OPT record in a reply that is cut (else there is one in every reply to somebody who sent one,
    /// RFC 6891 §6.1.1).
    pub in_step: bool,
    /// SOA serial.
    pub serial: u32,
}

/// Per-thread working memory for [`Envelope::fill`]: no allocation once it has grown to the largest answer.
#[derive(Debug)]
pub struct Scratch {
    rng: SmallRng,
    order: Vec<u16>,
    placed: Vec<u16>,
}

impl Default for Scratch {
    fn default() -> Self {
        Self {
            rng: rand::make_rng(),
            order: Vec::new(),
            placed: Vec::new(),
        }
    }
}

impl Scratch {
    /// Working memory whose choices can be repeated, for tests.
    pub fn seeded(seed: u64) -> Self {
        Self {
            rng: SmallRng::seed_from_u64(seed),
            order: Vec::new(),
            placed: Vec::new(),
        }
    }

    /// Puts a choice of `count` out of the template's answers into the first places of `order`: all of a group before
    /// any of the next, uniform within a group.
    fn choose(&mut self, template: &Template, count: usize) {
        let n = template.answers.len();
        self.order.clear();
        self.order.extend(0..n as u16);
        for (start, end) in template.groups() {
            for i in start..count.min(end.saturating_sub(1)) {
                let j = self.rng.random_range(i..end);
                self.order.swap(i, j);
            }
            if end >= count {
                return;
            }
        }
    }
}

impl Envelope<'_> {
    /// Writes a reply without records: the header, the question, the OPT. Returns its length.
    pub fn fill_error(&self, rcode: u16, out: &mut [u8]) -> usize {
        let mut out = Writer { out, at: HEADER };
        out.put(self.question);
        let (mut flags, rcode) = self.flags_and_rcode(rcode, false);
        flags |= rcode & 0xF;
        self.finish(out, flags, rcode, [0; 3])
    }

    /// Writes the reply into `out`, which must hold at least `limit` octets, itself at least 512.
    /// Returns its length.
    pub fn fill(&self, template: &Template, scratch: &mut Scratch, out: &mut [u8]) -> usize {
        let mut out = Writer { out, at: HEADER };
        out.put(self.question);
        let opt = self.edns.map_or(0, |edns| edns.len());
        let reserved = template.authority.len() + opt;
        let end = self.limit.saturating_sub(reserved);
        let most = template
            .answers
            .len()
            .min(template.take)
            .min(self.max_answers);

        let written = if template.targets.is_empty() {
            fill_plain(template, scratch, &mut out, end, most)
        } else {
            let in_step = self.in_step;
            fill_with_glue(template, scratch, &mut out, end, (most, in_step))
        };
        let (mut flags, rcode) = self.flags_and_rcode(template.rcode, template.authoritative);
        flags |= rcode & 0xF;
        if written.answers < most && self.say_truncated {
            flags |= Header::TC;
        }

        let authority_at = out.at;
        out.put(&template.authority);
        match template.serial {
            Some(Serial::InAuthority(at)) => {
                out.patch(authority_at + at, &self.serial.to_be_bytes())
            }
            Some(Serial::InAnswer(at)) if written.answers > 0 => {
                out.patch(
                    HEADER + self.question.len() + at,
                    &self.serial.to_be_bytes(),
                );
            }
            _ => {}
        }
        let mut additional = written.glue;
        let without_opt = Envelope {
            edns: None,
            ..*self
        };
        let (this, opt) = match self.in_step && written.answers < most {
            true => (&without_opt, 0),
            false => (self, opt),
        };
        if out.at + template.extra.len() + opt <= self.limit {
            out.put(&template.extra);
            additional += template.extra_count;
        }
        this.finish(
            out,
            flags,
            rcode,
            [written.answers as u16, template.authority_count, additional],
        )
    }

    fn flags_and_rcode(&self, rcode: u16, authoritative: bool) -> (u16, u16) {
        let mut flags = self.header.reply_flags();
        if authoritative {
            flags |= Header::AA;
        }
        if self.recursion {
            flags |= Header::RA;
        }
        // Codes above 15 need the OPT to say the rest; without one the closest plain code is FORMERR.
        let rcode = if rcode > 15 && self.edns.is_none() {
            rcode::FORMERR
        } else {
            rcode
        };
        (flags, rcode)
    }

    fn finish(&self, mut out: Writer<'_>, flags: u16, rcode: u16, counts: [u16; 3]) -> usize {
        let [answers, authority, mut additional] = counts;
        if let Some(edns) = &self.edns {
            edns.write(&mut out, rcode);
            additional += 1;
        }
        let questions = u16::from(!self.question.is_empty());
        for (i, word) in [
            self.header.id,
            flags,
            questions,
            answers,
            authority,
            additional,
        ]
        .into_iter()
        .enumerate()
        {
            out.patch(2 * i, &word.to_be_bytes());
        }
        out.at
    }
}

struct Written {
    answers: usize,
    glue: u16,
}

/// Answers whose data names nothing: copies, shuffled in place when all are shown.
fn fill_plain(
    template: &Template,
    scratch: &mut Scratch,
    out: &mut Writer<'_>,
    end: usize,
    most: usize,
) -> Written {
    let n = template.answers.len();
    let stride = template.stride;
    let room = end.saturating_sub(out.at);
    let answers = if n == most && template.body.len() <= room && (n < 2 || stride > 0) {
        let at = out.at;
        out.put(&template.body);
        let records = &mut out.out[at..at + template.body.len()];
        for (start, end) in template.groups() {
            shuffle(
                &mut records[start * stride..end * stride],
                stride,
                &mut scratch.rng,
            );
        }
        n
    } else {
        scratch.choose(template, most);
        let mut written = 0;
        for &index in &scratch.order[..most] {
            let span = template.answers[usize::from(index)];
            if out.at + usize::from(span.len) > end {
                break;
            }
            out.put(record(&template.body, span));
            written += 1;
        }
        written
    };
    Written { answers, glue: 0 }
}

/// Fisher–Yates over records of equal length.
fn shuffle(records: &mut [u8], stride: usize, rng: &mut SmallRng) {
    if stride == 0 {
        return;
    }
    for i in (1..records.len() / stride).rev() {
        let j = rng.random_range(0..=i);
        if i != j {
            let (low, high) = records.split_at_mut(i * stride);
            low[j * stride..][..stride].swap_with_slice(&mut high[..stride]);
        }
    }
}

/// SRV and NS: the additional records of each shown target go with it. When not everything fits, answers are shown
/// together with their addresses and the rest is left out; when only the addresses do not fit, they alone are cut.
fn fill_with_glue(
    template: &Template,
    scratch: &mut Scratch,
    out: &mut Writer<'_>,
    end: usize,
    (most, in_step): (usize, bool),
) -> Written {
    scratch.choose(template, most);
    scratch.placed.clear();
    scratch.placed.resize(template.targets.len(), 0);
    let all_answers_fit =
        !in_step && most == template.answers.len() && out.at + template.body.len() <= end;

    let mut answers = 0;
    let mut glue_len = 0;
    for &index in &scratch.order[..most] {
        let span = template.answers[usize::from(index)];
        let number = usize::from(span.target).checked_sub(1);
        let new = number.filter(|&n| scratch.placed[n] == 0);
        let cost = if all_answers_fit {
            0
        } else {
            new.map_or(0, |n| template.glue_len(n))
        };
        // The first answer goes alone rather than not at all.
        let needed = usize::from(span.len) + if answers == 0 { 0 } else { glue_len + cost };
        if out.at + needed > end {
            break;
        }
        glue_len += cost;
        if let Some(n) = new {
            scratch.placed[n] = (out.at + usize::from(span.target_at)) as u16;
        }
        out.put(record(&template.body, span));
        answers += 1;
    }

    let mut glue = 0;
    for (target, &name_at) in template.targets.iter().zip(&scratch.placed) {
        if name_at == 0 {
            continue;
        }
        let name_at = usize::from(name_at);
        for &span in &template.glue_spans[usize::from(target.first)..][..usize::from(target.count)]
        {
            let rest = record(&template.glue, span);
            if name_at <= POINTER_MAX {
                if out.at + 2 + rest.len() > end {
                    break;
                }
                out.put(&(0xC000 | name_at as u16).to_be_bytes());
            } else {
                // Out of a pointer's reach (TCP): the name stands in full a second time. A target that itself ends
                // in a pointer (the zone's name) is copied with it.
                let len = name::skip(out.out, name_at).map_or(0, |end| end - name_at);
                if out.at + len + rest.len() > end {
                    break;
                }
                out.out.copy_within(name_at..name_at + len, out.at);
                out.at += len;
            }
            out.put(rest);
            glue += 1;
        }
    }
    Written { answers, glue }
}

impl Template {
    /// Start and end of each group of answers.
    fn groups(&self) -> impl Iterator<Item = (usize, usize)> {
        let starts = std::iter::once(0).chain(self.borders.iter().map(|at| usize::from(*at)));
        let borders = self.borders.iter().map(|at| usize::from(*at));
        starts.zip(borders.chain(std::iter::once(self.answers.len())))
    }

    fn glue_len(&self, target: usize) -> usize {
        let target = self.targets[target];
        let spans = &self.glue_spans[usize::from(target.first)..][..usize::from(target.count)];
        spans.iter().map(|span| 2 + usize::from(span.len)).sum()
    }
}

fn record(body: &[u8], span: Span) -> &[u8] {
    &body[span.start as usize..][..usize::from(span.len)]
}

struct Writer<'b> {
    out: &'b mut [u8],
    at: usize,
}

impl Writer<'_> {
    fn put(&mut self, bytes: &[u8]) {
        self.out[self.at..self.at + bytes.len()].copy_from_slice(bytes);
        self.at += bytes.len();
    }

    fn patch(&mut self, at: usize, bytes: &[u8]) {
        self.out[at..at + bytes.len()].copy_from_slice(bytes);
    }
}
