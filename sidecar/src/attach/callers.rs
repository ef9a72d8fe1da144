//! Who at the other end of the agent's socket may act as which service.
//!
//! The kernel vouches for a caller's uid. Where several services share a uid, or uids mean nothing (containers),
//! the caller shows a token instead, which it read from a file that only it may read. A caller that maps to no
//! declared service is nobody: being able to open the socket grants nothing.

use libmesh::model::ServiceName;
use ring::digest::{SHA256, digest};

use crate::http::Remote;

/// The shortest attach token that is taken, in bytes.
pub const MIN_TOKEN: usize = 16;

/// A service that the agent's configuration declares, and who may act as it.
#[derive(Clone)]
pub struct Declaration {
    /// The service.
    pub service: ServiceName,
    /// Users whose processes may.
    pub uids: Vec<u32>,
    /// Whoever shows this token may.
    pub token: Option<AttachToken>,
}

/// What is kept of an attach token: its hash.
#[derive(Clone, PartialEq, Eq)]
pub struct AttachToken([u8; 32]);

/// A token too short to be secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "an attach token needs at least {MIN_TOKEN} bytes; make one with: head -c 24 /dev/urandom | base64"
)]
pub struct WeakToken;

impl AttachToken {
    /// Takes the text of a token file; white space around it does not count.
    ///
    /// # Errors
    /// When it is too short.
    pub fn new(text: &str) -> Result<Self, WeakToken> {
        let text = text.trim();
        if text.len() < MIN_TOKEN {
            return Err(WeakToken);
        }
        Ok(Self::hash(text))
    }

    fn hash(text: &str) -> Self {
        Self(
            digest(&SHA256, text.as_bytes())
                .as_ref()
                .try_into()
                .expect("SHA-256 has 32 bytes"),
        )
    }

    /// Takes the same time wherever the difference is.
    fn same(&self, other: &Self) -> bool {
        let different = self
            .0
            .iter()
            .zip(&other.0)
            .fold(0, |all, (a, b)| all | (a ^ b));
        std::hint::black_box(different) == 0
    }
}

/// Which services a caller may act as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// Exactly these; never empty.
    Services(Vec<ServiceName>),
    /// All of them (`mesh dev`).
    Any,
}

/// Why a caller is refused. The text says which line of configuration would let it in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The uid is nobody's, and no token was shown.
    #[error(
        "no service is declared for user id {0}: in the agent's configuration, set `uid = {0}` in [service.attach] of the \
         service's [[service]], or set `token_file` there and show that token"
    )]
    UnknownUser(u32),
    /// The token is no service's.
    #[error(
        "this attach token belongs to no declared service: compare the caller's file with `token_file` in [service.attach] \
         of the service's [[service]] in the agent's configuration"
    )]
    UnknownToken,
    /// Loopback TCP does not say who calls.
    #[error("who calls over TCP is not known: use the agent's Unix socket")]
    NotLocal,
    /// The caller is known, but as another service.
    #[error(
        "this caller may act as {allowed}, not as {asked}: in the agent's configuration, set its `uid` or a `token_file` \
         in [service.attach] of the [[service]] of {asked}"
    )]
    OtherService {
        /// What the caller may be.
        allowed: String,
        /// What it asked to be.
        asked: ServiceName,
    },
    /// The caller may be several services and has to say which.
    #[error(
        "this caller may act as {0}: name one in the X-Mesh-Service header, or show that service's attach token"
    )]
    Ambiguous(String),
}

/// The declared services of an agent.
#[derive(Clone, Default)]
pub struct Callers {
    declared: Vec<Declaration>,
    anyone: Option<u32>,
}

impl Callers {
    /// Those that the configuration declares.
    pub fn new(declared: Vec<Declaration>) -> Self {
        Self {
            declared,
            anyone: None,
        }
    }

    /// Lets every process of `uid` act as any service: for `mesh dev` only, which says so loudly.
    #[must_use]
    pub fn open_to(mut self, uid: u32) -> Self {
        self.anyone = Some(uid);
        self
    }

    /// Who this is. A token that is shown decides alone, so that a wrong one never falls back to the uid.
    ///
    /// # Errors
    /// When the caller maps to no declared service.
    pub fn identify(&self, remote: &Remote, token: Option<&str>) -> Result<Caller, Denied> {
        let Remote::Unix { uid, .. } = *remote else {
            return Err(Denied::NotLocal);
        };
        let services: Vec<ServiceName> = match token {
            Some(token) => {
                let shown = AttachToken::hash(token.trim());
                let owns = |d: &&Declaration| d.token.as_ref().is_some_and(|t| t.same(&shown));
                self.declared
                    .iter()
                    .filter(owns)
                    .map(|d| d.service.clone())
                    .collect()
            }
            None if self.anyone == Some(uid) => return Ok(Caller::Any),
            None => {
                let owns = |d: &&Declaration| d.uids.contains(&uid);
                self.declared
                    .iter()
                    .filter(owns)
                    .map(|d| d.service.clone())
                    .collect()
            }
        };
        match (services.is_empty(), token) {
            (false, _) => Ok(Caller::Services(services)),
            (true, Some(_)) => Err(Denied::UnknownToken),
            (true, None) => Err(Denied::UnknownUser(uid)),
        }
    }
}

impl Caller {
    /// Checks that the caller may act as `service`.
    ///
    /// # Errors
    /// [`Denied::OtherService`].
    pub fn require(&self, service: &ServiceName) -> Result<(), Denied> {
        match self {
            Self::Services(own) if !own.contains(service) => Err(Denied::OtherService {
                allowed: names(own),
                asked: service.clone(),
            }),
            _ => Ok(()),
        }
    }

    /// The one service the caller is: `named` when given, else the only one possible.
    ///
    /// # Errors
    /// When there are several and none was named, or another one was named.
    pub fn one(&self, named: Option<&ServiceName>) -> Result<ServiceName, Denied> {
        match (self, named) {
            (_, Some(named)) => self.require(named).map(|()| named.clone()),
            (Self::Any, None) => Err(Denied::Ambiguous("any service".to_owned())),
            (Self::Services(own), None) => match &own[..] {
                [only] => Ok(only.clone()),
                several => Err(Denied::Ambiguous(names(several))),
            },
        }
    }
}

fn names(services: &[ServiceName]) -> String {
    services
        .iter()
        .map(ServiceName::as_str)
        .collect::<Vec<_>>()
        .join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "correct horse battery staple";

    fn name(text: &str) -> ServiceName {
        ServiceName::parse(text).unwrap()
    }

    fn user(uid: u32) -> Remote {
        Remote::Unix {
            uid,
            gid: uid,
            pid: None,
        }
    }

    fn callers() -> Callers {
        let entry = |service: &str, uids: &[u32], token: Option<&str>| Declaration {
            service: name(service),
            uids: uids.to_vec(),
            token: token.map(|t| AttachToken::new(t).unwrap()),
        };
        Callers::new(vec![
            entry("web", &[1000], None),
            entry("api", &[1000, 1001], None),
            entry("db", &[], Some(TOKEN)),
        ])
    }

    #[test]
    fn a_uid_maps_to_its_services() {
        let both = callers().identify(&user(1000), None).unwrap();
        assert_eq!(both, Caller::Services(vec![name("web"), name("api")]));
        assert!(matches!(both.one(None), Err(Denied::Ambiguous(_))));
        assert_eq!(both.one(Some(&name("web"))), Ok(name("web")));
        let only = callers().identify(&user(1001), None).unwrap();
        assert_eq!(only.one(None), Ok(name("api")));
        assert!(matches!(
            only.require(&name("web")),
            Err(Denied::OtherService { .. })
        ));
    }

    #[test]
    fn a_token_decides_alone() {
        let callers = callers();
        let line = format!("{TOKEN}\n");
        for uid in [0, 1000, 4242] {
            let caller = callers.identify(&user(uid), Some(&line)).unwrap();
            assert_eq!(caller, Caller::Services(vec![name("db")]));
        }
        let wrong = callers.identify(&user(1000), Some("correct horse battery stapler"));
        assert_eq!(
            wrong,
            Err(Denied::UnknownToken),
            "the uid would have been enough"
        );
    }

    #[test]
    fn nobody_is_refused_with_the_line_to_add() {
        let callers = callers();
        let denied = callers.identify(&user(0), None).unwrap_err();
        assert_eq!(denied, Denied::UnknownUser(0));
        assert!(denied.to_string().contains("uid = 0"), "{denied}");
        let tcp = Remote::Tcp(([127, 0, 0, 1], 9).into());
        assert_eq!(callers.identify(&tcp, Some(TOKEN)), Err(Denied::NotLocal));
    }

    #[test]
    fn dev_is_open_to_its_own_user_only() {
        let dev = callers().open_to(7);
        assert_eq!(dev.identify(&user(7), None), Ok(Caller::Any));
        assert_eq!(dev.identify(&user(8), None), Err(Denied::UnknownUser(8)));
        assert!(Caller::Any.require(&name("web")).is_ok());
    }

    #[test]
    fn short_tokens_are_no_tokens() {
        assert_eq!(AttachToken::new("  too short \n").err(), Some(WeakToken));
    }
}
