//! Is a unit of systemd active?

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

use super::{Probe, ProbeResult};
use crate::identity::BoxFuture;
use crate::model::{Health, InvalidField};

/// There when systemd runs the system (`sd_booted(3)`).
const BOOTED: &str = "/run/systemd/system";

/// Asks systemd for a unit's state with `systemctl show`: `active` is passing, `activating` and `reloading` are warning,
/// everything else is critical; so is a host without systemd.
#[derive(Debug, Clone)]
pub struct SystemdProbe {
    unit: String,
    systemctl: PathBuf,
    booted: PathBuf,
}

impl SystemdProbe {
    /// A probe of `unit` (`nginx` means `nginx.service`).
    ///
    /// # Errors
    /// [`InvalidField`] `systemd` when that is no unit's name.
    pub fn new(unit: &str) -> Result<Self, InvalidField> {
        let fits = |c: char| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c);
        if unit.is_empty() || unit.len() > 255 || unit.starts_with('-') || !unit.chars().all(fits) {
            return Err(InvalidField::new(
                "systemd",
                format!("{unit:?} is no unit's name"),
            ));
        }
        Ok(Self {
            unit: match unit.contains('.') {
                true => unit.to_owned(),
                false => format!("{unit}.service"),
            },
            systemctl: "systemctl".into(),
            booted: BOOTED.into(),
        })
    }

    /// With another `systemctl` and another sign of a system that systemd runs.
    #[cfg(test)]
    pub(super) fn with(self, systemctl: &Path, booted: &Path) -> Self {
        Self {
            systemctl: systemctl.to_owned(),
            booted: booted.to_owned(),
            ..self
        }
    }

    async fn look(&self) -> Result<ProbeResult, String> {
        if !Path::new(&self.booted).exists() {
            return Err("systemd does not run this system".to_owned());
        }
        let output = Command::new(&self.systemctl)
            .args(["show", "--property=LoadState,ActiveState,SubState", "--"])
            .arg(&self.unit)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .map_err(|error| format!("{}: {error}", self.systemctl.display()))?;
        if !output.status.success() {
            let reason = String::from_utf8_lossy(&output.stderr);
            return Err(format!("systemctl: {}", reason.trim()));
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let property = |name: &str| {
            let mut pairs = text.lines().filter_map(|line| line.split_once('='));
            pairs
                .find(|(key, _)| *key == name)
                .map_or("unknown", |(_, value)| value)
        };
        let active = property("ActiveState");
        Ok(ProbeResult {
            health: match active {
                "active" => Health::Passing,
                "activating" | "reloading" => Health::Warning,
                _ => Health::Critical,
            },
            output: match property("LoadState") {
                "loaded" => format!("{}: {active} ({})", self.unit, property("SubState")),
                load => format!("{}: {active} ({load})", self.unit),
            },
        })
    }
}

impl Probe for SystemdProbe {
    fn kind(&self) -> &'static str {
        "systemd"
    }

    fn probe(&self) -> BoxFuture<'_, ProbeResult> {
        Box::pin(async {
            let looked = self.look().await;
            looked.unwrap_or_else(|error| ProbeResult::critical(format!("{}: {error}", self.unit)))
        })
    }

    fn starts_process(&self) -> bool {
        true
    }
}
