//! Hosts that are network namespaces: each with one interface on a bridge in a namespace of its own.
//!
//! Nothing is done to the machine's own network: both ends of every cable are in namespaces that are made here and
//! deleted when the lab is dropped, so traffic never leaves them. Needs root and `ip`; loss and deafness need `nft`.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::{Command, Stdio};

/// Namespaces are called so, then the process that made them, then the host.
pub const PREFIX: &str = "mesh-lab";

/// A lab of hosts `0..`, reachable from each other until the lab says otherwise.
pub struct Lab {
    prefix: String,
    hosts: usize,
}

/// Why there is no lab.
pub type Trouble = String;

fn run(command: &[&str]) -> Result<(), Trouble> {
    let output = Command::new(command[0])
        .args(&command[1..])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("cannot run {}: {error}", command[0]))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{} failed: {}", command.join(" "), said.trim()))
}

impl Lab {
    /// Makes `hosts` hosts.
    pub fn new(hosts: usize) -> Result<Self, Trouble> {
        let lab = Self {
            prefix: format!("{PREFIX}{}", std::process::id()),
            hosts,
        };
        remove_left_behind();
        let hub = lab.hub();
        run(&["ip", "netns", "add", &hub])?;
        for bridge in ["left", "right"] {
            run(&["ip", "-n", &hub, "link", "add", bridge, "type", "bridge"])?;
            run(&["ip", "-n", &hub, "link", "set", bridge, "up"])?;
        }
        for host in 0..hosts {
            let (name, port) = (lab.host(host), format!("port{host}"));
            run(&["ip", "netns", "add", &name])?;
            run(&[
                "ip", "-n", &hub, "link", "add", &port, "type", "veth", "peer", "name", "eth0",
                "netns", &name,
            ])?;
            let address = format!("{}/24", lab.address(host));
            run(&["ip", "-n", &name, "addr", "add", &address, "dev", "eth0"])?;
            for device in ["lo", "eth0"] {
                run(&["ip", "-n", &name, "link", "set", device, "up"])?;
            }
            run(&[
                "ip", "-n", &hub, "link", "set", &port, "master", "left", "up",
            ])?;
        }
        Ok(lab)
    }

    /// Number of hosts.
    pub fn len(&self) -> usize {
        self.hosts
    }

    fn hub(&self) -> String {
        format!("{}-hub", self.prefix)
    }

    fn host(&self, host: usize) -> String {
        format!("{}-{host}", self.prefix)
    }

    /// A host's address.
    pub fn address(&self, host: usize) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(10, 77, 0, host as u8 + 1))
    }

    /// The command that runs another on a host.
    pub fn on(&self, host: usize) -> Vec<String> {
        ["ip", "netns", "exec", &self.host(host)]
            .map(str::to_owned)
            .to_vec()
    }

    /// Cuts the network in two: hosts for which `right` holds, and the rest.
    pub fn split(&self, right: impl Fn(usize) -> bool) -> Result<(), Trouble> {
        for host in 0..self.hosts {
            let bridge = if right(host) { "right" } else { "left" };
            let (hub, port) = (self.hub(), format!("port{host}"));
            run(&["ip", "-n", &hub, "link", "set", &port, "master", bridge])?;
        }
        Ok(())
    }

    /// One network again.
    pub fn heal(&self) -> Result<(), Trouble> {
        self.split(|_| false)
    }

    fn nft(&self, host: usize, words: &str) -> Result<(), Trouble> {
        let name = self.host(host);
        let mut command = vec!["ip", "netns", "exec", &name, "nft"];
        command.extend(words.split(' '));
        run(&command)
    }

    /// Lets a host drop incoming packets that a rule of nftables matches, until [`hear_all`](Self::hear_all).
    fn drop_incoming(&self, host: usize, rule: &str) -> Result<(), Trouble> {
        self.nft(host, "add table inet lab")?;
        self.nft(
            host,
            "add chain inet lab in { type filter hook input priority 0 ; }",
        )?;
        self.nft(host, &format!("add rule inet lab in {rule} drop"))
    }

    /// Lets every host lose this share of what arrives, in percent.
    pub fn lose(&self, percent: u32) -> Result<(), Trouble> {
        for host in 0..self.hosts {
            let rule = format!("iif eth0 numgen random mod 100 < {percent}");
            self.drop_incoming(host, &rule)?;
        }
        Ok(())
    }

    /// Lets one host not hear another, which hears it.
    pub fn deafen(&self, host: usize, to: usize) -> Result<(), Trouble> {
        self.drop_incoming(host, &format!("ip saddr {}", self.address(to)))
    }

    /// Ends losses and deafness.
    pub fn hear_all(&self) -> Result<(), Trouble> {
        for host in 0..self.hosts {
            // Fails where there was no table.
            let _ = self.nft(host, "delete table inet lab");
        }
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        remove(&format!("{}-", self.prefix));
    }
}

/// Removes network namespaces whose names start like this, as far as that goes.
pub fn remove(prefix: &str) {
    remove_where(|name| name.starts_with(prefix));
}

/// Removes what labs of processes left that are no more.
fn remove_left_behind() {
    remove_where(|name| {
        let pid = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split_once('-'))
            .and_then(|(pid, _)| pid.parse::<u32>().ok());
        pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
    });
}

fn remove_where(which: impl Fn(&str) -> bool) {
    let Ok(listed) = Command::new("ip").args(["netns", "list"]).output() else {
        return;
    };
    let listed = String::from_utf8_lossy(&listed.stdout);
    let names = listed.lines().filter_map(|line| line.split(' ').next());
    for name in names.filter(|name| which(name)) {
        // Somebody else may have removed it meanwhile.
        let _ = run(&["ip", "netns", "del", name]);
    }
}
