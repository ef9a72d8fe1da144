//! Where configuration comes from, and how it is put together: Consul's own files, TOML, variables, flags.

use std::{
    cell::RefCell,
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    Config, ConfigErrors, DEFAULT_DIR, Place, Problem, consul,
    reader::nearest,
    sections,
    tree::{self, Kind, Table},
};

/// Where configuration comes from.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    files: Vec<PathBuf>,
    consul: Vec<PathBuf>,
    env: Vec<(String, String)>,
    flags: Vec<(String, &'static str, &'static str, String)>,
}

impl Sources {
    /// The given files and directories; when there are none, [`DEFAULT_DIR`] if it exists.
    pub fn new(paths: &[PathBuf]) -> Sources {
        let mut files = paths.to_vec();
        if files.is_empty() && Path::new(DEFAULT_DIR).is_dir() {
            files.push(DEFAULT_DIR.into());
        }
        Sources {
            files,
            ..Sources::default()
        }
    }

    /// Lays the files over configuration of Consul's own: these files, and the `*.json` and `*.hcl` of these directories.
    #[must_use]
    pub fn over_consul(mut self, paths: &[PathBuf]) -> Sources {
        self.consul = paths.to_vec();
        self
    }

    /// Lays `MESH_<SECTION>_<KEY>` variables over the files.
    #[must_use]
    pub fn with_env(mut self, vars: impl IntoIterator<Item = (String, String)>) -> Sources {
        self.env = vars.into_iter().collect();
        self
    }

    /// Lays a flag's value over everything else.
    #[must_use]
    pub fn with_flag(
        mut self,
        flag: &str,
        section: &'static str,
        key: &'static str,
        value: impl Into<String>,
    ) -> Sources {
        self.flags
            .push((flag.to_owned(), section, key, value.into()));
        self
    }

    /// The files that will be read, in order: Consul's, then ours.
    pub fn list(&self) -> io::Result<(Vec<PathBuf>, Vec<PathBuf>)> {
        Ok((
            expand(&self.consul, &["json", "hcl"])?,
            expand(&self.files, &["toml"])?,
        ))
    }
}

/// Files as they are, directories as their files with such endings, in the order of their names.
fn expand(paths: &[PathBuf], endings: &[&str]) -> io::Result<Vec<PathBuf>> {
    let mut all = Vec::new();
    for path in paths {
        if !path.is_dir() {
            all.push(path.clone());
            continue;
        }
        let mut inside: Vec<_> = fs::read_dir(path)?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<io::Result<_>>()?;
        inside.retain(|path| {
            endings
                .iter()
                .any(|one| path.extension() == Some(one.as_ref()))
        });
        inside.sort();
        all.append(&mut inside);
    }
    Ok(all)
}

/// Keys that a variable may set; everything else is for files.
const ENV_KEYS: &[(&str, &str)] = &[
    ("node", "name"),
    ("node", "datacenter"),
    ("node", "data_dir"),
    ("node", "bind"),
    ("node", "advertise"),
    ("node", "on_term"),
    ("node", "pool_limit"),
    ("join", "seeds"),
    ("join", "token_file"),
    ("join", "patience"),
    ("ports", "gossip"),
    ("ports", "http"),
    ("ports", "https"),
    ("ports", "dns"),
    ("ports", "dns_tls"),
    ("ports", "vault"),
    ("addresses", "http"),
    ("addresses", "https"),
    ("addresses", "dns"),
    ("addresses", "vault"),
    ("addresses", "socket"),
    ("addresses", "socket_mode"),
    ("addresses", "socket_user"),
    ("addresses", "socket_group"),
    ("limits", "http_max_conns_per_client"),
    ("dns", "domains"),
    ("dns", "recursors"),
    ("dns", "ttl"),
    ("dns", "threads"),
    ("server", "store"),
    ("server", "audit"),
    ("server", "history_retention"),
    ("server", "service_cert_ttl"),
    ("server", "node_cert_ttl"),
    ("acl", "default_policy"),
    ("intentions", "default"),
    ("health", "exec_checks"),
    ("log", "level"),
    ("log", "format"),
];

impl Config {
    /// Reads and checks everything.
    ///
    /// # Errors
    /// All problems at once: unreadable files, syntax, unknown keys, wrong values, contradictions.
    pub fn load(sources: &Sources) -> Result<Config, ConfigErrors> {
        let mut problems = Vec::new();
        let mut tree = Table::default();
        let (consul, files) = sources.list().unwrap_or_else(|error| {
            problems.push(Problem {
                place: Place::named("configuration"),
                message: format!("a directory cannot be listed: {error}"),
            });
            Default::default()
        });
        let (sections, consul) = consul::read(&consul, &mut problems);
        tree.merge(sections);
        for file in files {
            match fs::read_to_string(&file) {
                Ok(text) => tree.merge(tree::parse(&file, &text, &mut problems)),
                Err(error) => problems.push(Problem {
                    place: Place::named(&file.display().to_string()),
                    message: format!("cannot be read: {error}"),
                }),
            }
        }
        overlay_env(&mut tree, &sources.env, &mut problems);
        for (flag, section, key, value) in &sources.flags {
            tree.set(
                section,
                key,
                &Place::named(flag),
                Kind::Loose(value.clone()),
            );
        }
        let problems = RefCell::new(problems);
        let config = sections::read(tree, consul, &problems);
        let mut problems = problems.into_inner();
        match config {
            Some(config) if problems.is_empty() => Ok(config),
            _ => {
                problems.sort();
                problems.dedup();
                Err(ConfigErrors(problems))
            }
        }
    }
}

fn overlay_env(tree: &mut Table, vars: &[(String, String)], problems: &mut Vec<Problem>) {
    let name = |(section, key): &(&str, &str)| format!("MESH_{section}_{key}").to_uppercase();
    let known: Vec<String> = ENV_KEYS.iter().map(name).collect();
    for (var, value) in vars {
        let place = Place::named(var);
        if let Some(at) = known.iter().position(|name| name == var) {
            let (section, key) = ENV_KEYS[at];
            tree.set(section, key, &place, Kind::Loose(value.clone()));
            continue;
        }
        // Other MESH_* variables belong to the command line; only those named after a section are ours.
        let section_of = |word: &str| {
            ENV_KEYS
                .iter()
                .any(|(section, _)| section.to_uppercase() == word)
        };
        let ours = var
            .strip_prefix("MESH_")
            .and_then(|rest| rest.split_once('_'))
            .is_some_and(|(section, _)| section_of(section));
        if ours {
            let names: Vec<&str> = known.iter().map(String::as_str).collect();
            let hint =
                nearest(var, &names).map_or(String::new(), |n| format!("; did you mean {n}?"));
            problems.push(Problem {
                place,
                message: format!("unknown variable{hint}"),
            });
        }
    }
}
