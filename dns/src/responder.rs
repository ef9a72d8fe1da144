//! From the octets of a request to the octets of a reply, without a socket.
//!
//! A [`Responder`] belongs to one thread and keeps its own cache of prepared answers, so that answering takes no lock.
//! An entry is checked by one atomic load while nothing at all changed in the catalog, and by the revision of *its*
//! service when something did: a busy service does not make the answers of others be built again.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

use crate::config::{Config, Manner, Upstreams};
use crate::cookie::Cookies;
use crate::limit::Verdict;
use crate::stats::Stats;
use crate::wire::message::{Edns, Header, Query, Question, Request};
use crate::wire::name::{self, Domain, Folded};
use crate::wire::template::{Envelope, ReplyEdns, Scratch, Template};
use crate::wire::{CLASS_ANY, CLASS_IN, EDE_NOT_READY, TCP_MAX, UDP_WITHOUT_EDNS, rcode, rtype};
use crate::zone::explain::Explanation;
use crate::zone::{Answer, Depends, Zone};

/// Whether the catalog can be trusted to be complete. Until it is, our names get SERVFAIL instead of a false
/// NXDOMAIN. Clones share the state.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<AtomicBool>);

impl Readiness {
    /// A state that starts as given.
    pub fn new(ready: bool) -> Self {
        Self(Arc::new(AtomicBool::new(ready)))
    }

    /// Tells all servers with this state.
    pub fn set(&self, ready: bool) {
        self.0.store(ready, Ordering::Release);
    }

    /// The state now.
    pub fn is_ready(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// What all responders of a server share.
#[derive(Debug)]
pub struct Shared {
    zone: Zone,
    readiness: Readiness,
    stats: Stats,
    payload: u16,
    manner: Manner,
    max_answers: usize,
    say_truncated: bool,
    /// Whether there are upstreams for any name.
    forwards: bool,
    /// The domains that have upstreams of their own.
    forwarded: Vec<Domain>,
    cookies: Cookies,
}

impl Shared {
    /// What `config` says, over the catalog of `zone`.
    pub fn new(config: &Config, zone: Zone, readiness: Readiness) -> Self {
        Self {
            zone,
            readiness,
            stats: Stats::default(),
            payload: config.udp_payload.clamp(UDP_WITHOUT_EDNS as u16, 4096),
            manner: config.manner,
            max_answers: config.udp_answer_limit.map_or(usize::MAX, usize::from),
            say_truncated: config.say_truncated,
            forwards: config.upstreams != Upstreams::None,
            forwarded: config
                .forward
                .iter()
                .map(|(zone, _)| zone.clone())
                .collect(),
            cookies: Cookies::new(),
        }
    }

    /// Whether any name goes to an upstream.
    fn recurses(&self) -> bool {
        self.forwards || !self.forwarded.is_empty()
    }

    /// Whether there is an upstream for a foreign name, folded.
    fn has_upstream(&self, folded: &[u8]) -> bool {
        let within = |zone: &Domain| zone.prefix_len(folded).is_some();
        self.forwards || self.forwarded.iter().any(within)
    }

    /// Counters of all responders.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Whether our names are answered yet.
    pub fn readiness(&self) -> &Readiness {
        &self.readiness
    }

    /// Why a name is answered as it is.
    pub(crate) fn explain(&self, name: &str, rtype: u16) -> Option<Explanation> {
        let mut explanation = self.zone.explain(name, rtype)?;
        if !self.readiness.is_ready() {
            let reading = &mut explanation.reading;
            reading.push_str("; SERVFAIL until this node knows the mesh");
        }
        if explanation.foreign {
            let folded = name::encode(name)?.to_ascii_lowercase();
            let asked = match self.has_upstream(&folded) {
                true => ": an upstream is asked",
                false => ": it is refused, as no upstream is set for it",
            };
            explanation.reading.push_str(asked);
        }
        Some(explanation)
    }

    /// A whole reply about a name of ours, without EDNS and not cut; `None` for a foreign name.
    pub(crate) fn answer(&self, header: Header, question: &Question<'_>) -> Option<Vec<u8>> {
        let folded = Folded::new(question.name);
        self.zone.domain_of(folded.as_bytes())?;
        let answer = self.zone.answer(folded.as_bytes(), question.rtype)?;
        let envelope = Envelope {
            header,
            question: question.bytes,
            edns: None,
            limit: TCP_MAX,
            recursion: self.recurses(),
            max_answers: usize::MAX,
            say_truncated: false,
            in_step: false,
            serial: (self.zone.catalog().revision() / 1_000_000) as u32,
        };
        let mut reply = vec![0; TCP_MAX];
        let len = envelope.fill(&answer.template, &mut Scratch::default(), &mut reply);
        reply.truncate(len);
        Some(reply)
    }

    pub(crate) fn payload(&self) -> u16 {
        self.payload
    }
}

/// How a request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// In a datagram: the reply may have to be cut.
    Udp,
    /// In a stream.
    Tcp,
}

/// What to do with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Send that many octets of the buffer.
    Reply(usize),
    /// Send nothing.
    Ignore,
    /// Somebody else's name: ask an upstream.
    Forward,
}

/// Answers requests; one per thread.
#[derive(Debug)]
pub struct Responder {
    shared: Arc<Shared>,
    changes: watch::Receiver<u64>,
    revision: u64,
    cache: Cache,
    scratch: Scratch,
    /// Who asks just now, if that is known.
    asker: Option<IpAddr>,
}

impl Responder {
    /// Octets that the buffer for a reply over UDP must have at least.
    pub const UDP_BUFFER: usize = 4096;

    /// A responder with an empty cache.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self::with_scratch(shared, Scratch::default())
    }

    /// A responder whose random choices can be repeated, for tests.
    pub fn seeded(shared: Arc<Shared>, seed: u64) -> Self {
        Self::with_scratch(shared, Scratch::seeded(seed))
    }

    fn with_scratch(shared: Arc<Shared>, scratch: Scratch) -> Self {
        let mut changes = shared.zone.catalog().watch_all();
        let revision = *changes.borrow_and_update();
        Self {
            shared,
            changes,
            revision,
            cache: Cache::default(),
            scratch,
            asker: None,
        }
    }

    /// Makes the random choices from here on those of [`seeded`](Self::seeded), for tests.
    pub fn reseed(&mut self, seed: u64) {
        self.scratch = Scratch::seeded(seed);
    }

    /// Reads one request and writes its reply into `out`: at least [`Self::UDP_BUFFER`] octets for UDP, 65,535 for
    /// TCP. Cookies are for those whose address is known: see [`respond_to`](Self::respond_to).
    pub fn respond(&mut self, request: &[u8], via: Via, out: &mut [u8]) -> Outcome {
        self.asker = None;
        self.answer(request, via, out)
    }

    /// The same for a request of `from`.
    pub fn respond_to(
        &mut self,
        request: &[u8],
        via: Via,
        from: IpAddr,
        out: &mut [u8],
    ) -> Outcome {
        self.asker = Some(from);
        self.answer(request, via, out)
    }

    /// Whether a request shows a cookie that its sender can only have from us.
    pub(crate) fn knows(&self, request: &[u8], from: IpAddr) -> bool {
        let Request::Query(Query {
            edns:
                Some(Edns {
                    cookie: Some(cookie),
                    ..
                }),
            ..
        }) = Request::parse(request)
        else {
            return false;
        };
        self.shared.cookies.check(cookie, from, now()).known
    }

    fn answer(&mut self, request: &[u8], via: Via, out: &mut [u8]) -> Outcome {
        match Request::parse(request) {
            Request::Ignore => {
                self.shared.stats.ignored();
                Outcome::Ignore
            }
            Request::Malformed(header) => self.error(header, None, None, None, rcode::FORMERR, out),
            Request::Other(header, question) => {
                if question.is_some_and(|question| self.is_for_upstream(&question)) {
                    return Outcome::Forward;
                }
                self.error(header, question.as_ref(), None, None, rcode::NOTIMP, out)
            }
            Request::Query(query) => self.query(&query, via, out),
        }
    }

    /// Writes what somebody gets who has asked too much: nothing, or an empty reply that says "come over TCP", which
    /// who only pretends to be the sender cannot do. It is as long as the question, and a cookie that he may come back with.
    pub(crate) fn refuse(
        &self,
        request: &[u8],
        from: IpAddr,
        verdict: Verdict,
        out: &mut [u8],
    ) -> usize {
        self.shared.stats.limited();
        let Request::Query(query) = Request::parse(request) else {
            return 0;
        };
        if verdict != Verdict::Truncate {
            return 0;
        }
        let (header, question) = (query.header, Some(&query.question));
        let shared = &self.shared;
        let edns = query.edns.filter(|edns| edns.version == 0);
        let edns = edns.map(|edns| shared.edns(edns, None, Some(from)));
        let len = shared.error(header, question, edns, rcode::NOERROR, out);
        out[2] |= (Header::TC >> 8) as u8;
        shared.stats.reply(rcode::NOERROR);
        shared.stats.truncated();
        len
    }

    fn query(&mut self, query: &Query<'_>, via: Via, out: &mut [u8]) -> Outcome {
        let Query {
            header,
            question,
            edns,
        } = *query;
        let code = if edns.is_some_and(|edns| edns.version > 0) {
            rcode::BADVERS
        } else if matches!(question.rtype, rtype::AXFR | rtype::IXFR) {
            rcode::NOTIMP
        } else if !matches!(question.class, CLASS_IN | CLASS_ANY) {
            if self.is_for_upstream(&question) {
                return Outcome::Forward;
            }
            rcode::REFUSED
        } else {
            return self.lookup(query, via, out);
        };
        self.error(header, Some(&question), edns, None, code, out)
    }

    fn lookup(&mut self, query: &Query<'_>, via: Via, out: &mut [u8]) -> Outcome {
        let Query {
            header,
            question,
            edns,
        } = *query;
        if self.changes.has_changed().unwrap_or(false) {
            self.revision = *self.changes.borrow_and_update();
        }
        let mut folded = Folded::new(question.name);
        let zone = &self.shared.zone;
        let transient;
        let ready = self.shared.readiness.is_ready();
        let template = match self
            .cache
            .find(folded.key(question.rtype), zone, self.revision)
        {
            Some(template) if ready => template,
            _ => {
                if !ready && zone.domain_of(folded.as_bytes()).is_some() {
                    return self.error(
                        header,
                        Some(&question),
                        edns,
                        Some(EDE_NOT_READY),
                        rcode::SERVFAIL,
                        out,
                    );
                }
                self.shared.stats.prepared();
                match zone.answer(folded.as_bytes(), question.rtype) {
                    Some(Answer {
                        template,
                        depends: Depends::Transient,
                    }) => {
                        transient = template;
                        &transient
                    }
                    Some(answer) => {
                        self.cache
                            .keep(folded.key(question.rtype), answer, self.revision)
                    }
                    None if self.shared.has_upstream(folded.as_bytes()) => {
                        return Outcome::Forward;
                    }
                    None => {
                        return self.error(
                            header,
                            Some(&question),
                            edns,
                            None,
                            rcode::REFUSED,
                            out,
                        );
                    }
                }
            }
        };
        if template.is_alias() && self.shared.recurses() && is_address(question.rtype) {
            // Stub resolvers do not go after an alias themselves.
            return Outcome::Forward;
        }
        let limit = match (via, edns) {
            (Via::Tcp, _) => TCP_MAX,
            (Via::Udp, None) => UDP_WITHOUT_EDNS,
            (Via::Udp, Some(edns)) => usize::from(
                edns.payload
                    .clamp(UDP_WITHOUT_EDNS as u16, self.shared.payload),
            ),
        };
        let envelope = Envelope {
            header,
            question: question.bytes,
            edns: edns.map(|edns| self.shared.edns(edns, template.extended(), self.asker)),
            limit: limit.min(out.len()),
            recursion: self.shared.recurses(),
            max_answers: if via == Via::Udp && edns.is_none() {
                self.shared.max_answers
            } else {
                usize::MAX
            },
            say_truncated: via == Via::Udp && self.shared.say_truncated,
            in_step: self.shared.manner == Manner::Consul,
            // Unix seconds: the catalog's revision is in µs.
            serial: (self.revision / 1_000_000) as u32,
        };
        let len = envelope.fill(template, &mut self.scratch, out);
        self.shared.stats.reply(template.rcode());
        if out[2] & (Header::TC >> 8) as u8 != 0 {
            self.shared.stats.truncated();
        }
        Outcome::Reply(len)
    }

    fn is_for_upstream(&self, question: &Question<'_>) -> bool {
        let folded = Folded::new(question.name);
        self.shared.has_upstream(folded.as_bytes())
            && self.shared.zone.domain_of(folded.as_bytes()).is_none()
    }

    fn error(
        &self,
        header: Header,
        question: Option<&Question<'_>>,
        edns: Option<Edns<'_>>,
        extended: Option<u16>,
        code: u16,
        out: &mut [u8],
    ) -> Outcome {
        self.shared.stats.reply(code);
        let edns = edns.map(|edns| self.shared.edns(edns, extended, self.asker));
        Outcome::Reply(self.shared.error(header, question, edns, code, out))
    }
}

impl Shared {
    /// The OPT record of a reply to `asker`, who gets a cookie if he has sent one.
    pub(crate) fn edns(
        &self,
        asked: Edns<'_>,
        error: Option<u16>,
        asker: Option<IpAddr>,
    ) -> ReplyEdns {
        let cookie = asked.cookie.zip(asker);
        let cookie = cookie.map(|(cookie, from)| self.cookies.check(cookie, from, now()).reply);
        ReplyEdns {
            cookie,
            payload: match self.manner {
                Manner::Mesh => self.payload,
                // The asker's own.
                Manner::Consul => asked.payload,
            },
            dnssec_ok: asked.dnssec_ok,
            error,
        }
    }

    /// Writes an error reply into `out`; its length.
    pub(crate) fn error(
        &self,
        header: Header,
        question: Option<&Question<'_>>,
        edns: Option<ReplyEdns>,
        code: u16,
        out: &mut [u8],
    ) -> usize {
        let envelope = Envelope {
            header,
            question: question.map_or(&[], |question| question.bytes),
            edns,
            limit: out.len(),
            recursion: self.recurses(),
            max_answers: usize::MAX,
            say_truncated: false,
            in_step: false,
            serial: 0,
        };
        envelope.fill_error(code, out)
    }
}

/// Unix seconds, as cookies have them.
fn now() -> u32 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs() as u32)
}

/// Whether the type is that of an address.
pub(crate) fn is_address(rtype: u16) -> bool {
    matches!(rtype, rtype::A | rtype::AAAA)
}

/// Prepared answers by folded name and type.
#[derive(Debug, Default)]
struct Cache {
    /// Boxed: the table is half empty, and looking into it shall touch as few cache lines as possible.
    entries: HashMap<Box<[u8]>, Box<Entry>>,
    weight: usize,
}

#[derive(Debug)]
struct Entry {
    template: Template,
    depends: Depends,
    /// The catalog's revision when this was last known to be true.
    checked: u64,
}

impl Cache {
    /// Octets of prepared answers after which the cache starts again empty. Names without an answer are never kept,
    /// so only a mesh with very many names comes here, not somebody who asks for invented ones.
    const MAX_WEIGHT: usize = 64 << 20;

    fn find(&mut self, key: &[u8], zone: &Zone, revision: u64) -> Option<&Template> {
        let entry = self.entries.get_mut(key)?;
        if entry.checked != revision {
            let current = match &entry.depends {
                Depends::Nothing => true,
                Depends::Services(all) => all
                    .iter()
                    .all(|(name, of)| zone.catalog().service_revision(name) == *of),
                Depends::Catalog(of) => *of == revision,
                Depends::Transient => false,
            };
            if !current {
                return None;
            }
            entry.checked = revision;
        }
        Some(&entry.template)
    }

    fn keep(&mut self, key: &[u8], answer: Answer, revision: u64) -> &Template {
        let Answer {
            mut template,
            depends,
        } = answer;
        template.shrink();
        let weight = template.weight() + key.len() + size_of::<Entry>();
        if let Some(old) = self.entries.remove(key) {
            self.weight -= old.template.weight() + key.len() + size_of::<Entry>();
        }
        if self.weight + weight > Self::MAX_WEIGHT {
            self.entries.clear();
            self.weight = 0;
        }
        self.weight += weight;
        let entry = Entry {
            template,
            depends,
            checked: revision,
        };
        &self
            .entries
            .entry(key.into())
            .insert_entry(Box::new(entry))
            .into_mut()
            .template
    }
}

#[cfg(test)]
mod tests;
