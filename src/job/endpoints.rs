//! Endpoints (`HOST:PORT`): which of a list belong to this machine, and whether others can reach what it would tell them.

use std::net::{IpAddr, TcpListener, ToSocketAddrs};

/// What this machine knows of names and addresses.
pub trait Network {
    /// The addresses of a host; none if it is not known.
    fn resolve(&self, host: &str) -> Vec<IpAddr>;

    /// Whether an address is one of this machine.
    fn is_local(&self, ip: IpAddr) -> bool;

    /// The name of this machine.
    fn hostname(&self) -> String;
}

/// The system's own answers.
#[derive(Debug, Clone, Copy, Default)]
pub struct System;

impl Network for System {
    fn resolve(&self, host: &str) -> Vec<IpAddr> {
        (bare(host), 0).to_socket_addrs().map(|all| all.map(|a| a.ip()).collect()).unwrap_or_default()
    }

    fn is_local(&self, ip: IpAddr) -> bool {
        // Only an address of this machine can be bound.
        TcpListener::bind((ip, 0)).is_ok()
    }

    fn hostname(&self) -> String {
        std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
    }
}

/// A place in a job's list of pservers or workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seat {
    /// What the others connect to.
    pub endpoint: String,
    /// What is bound here; nothing for the seat of another machine.
    pub bind: Option<String>,
}

fn bare(host: &str) -> &str {
    host.trim_start_matches('[').trim_end_matches(']')
}

/// Host and port of an endpoint.
///
/// # Errors
/// What is no `HOST:PORT`.
pub fn split(endpoint: &str) -> Result<(&str, u16), String> {
    let parts = endpoint.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    let port = parts.and_then(|(host, port)| Some((host, port.parse().ok()?)));
    port.ok_or_else(|| format!("endpoint \"{endpoint}\": expected HOST:PORT"))
}

/// Seats of one machine, with ports of the system's choice.
pub fn seats_here(host: &str, count: usize) -> Vec<Seat> {
    let endpoint = format!("{host}:0");
    vec![Seat { bind: Some(endpoint.clone()), endpoint }; count]
}

/// The seats of a list. Those of this machine are the ones whose host is `host` or resolves to an address of it; they are
/// bound, and told to the others, under `host` if it is given.
///
/// # Errors
/// What is no endpoint, and a port 0 that another machine would have to know.
pub fn seats(list: &[String], host: Option<&str>, net: &dyn Network) -> Result<Vec<Seat>, String> {
    let mut seats = Vec::new();
    for endpoint in list {
        let (name, port) = split(endpoint)?;
        if !(host == Some(name) || net.resolve(name).iter().any(|&ip| net.is_local(ip))) {
            seats.push(Seat { endpoint: endpoint.clone(), bind: None });
            continue;
        }
        let own = format!("{}:{port}", host.unwrap_or(name));
        seats.push(Seat { endpoint: own.clone(), bind: Some(own) });
    }
    if seats.iter().any(|s| s.bind.is_none())
        && let Some(open) = seats.iter().find(|s| s.endpoint.ends_with(":0"))
    {
        return Err(format!("endpoint \"{}\": other machines need its port", open.endpoint));
    }
    Ok(seats)
}

/// That nobody is told a loopback address who is on another machine. `own` is what this process binds, `peers` the endpoints
/// of the others.
///
/// # Errors
/// An own endpoint that resolves to loopback, with the peer that could not reach it.
pub fn reachable<'a>(own: &str, peers: impl IntoIterator<Item = &'a str>, net: &dyn Network) -> Result<(), String> {
    let (host, _) = split(own)?;
    let addresses = net.resolve(host);
    let Some(loopback) = addresses.first().filter(|_| addresses.iter().all(IpAddr::is_loopback)) else { return Ok(()) };
    for peer in peers {
        let (name, _) = split(peer)?;
        let there = net.resolve(name);
        // A name that is not known yet is one of another machine.
        if peer != own && !there.iter().any(|&ip| ip.is_loopback() || net.is_local(ip)) {
            let shown = if bare(host) == loopback.to_string() { String::new() } else { format!(", which is {loopback} on this machine") };
            return Err(format!(
                "\"{own}\"{shown}: {peer} on another machine could not connect to a loopback address; give the address of this machine by --host or POD_IP"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A machine whose hosts file maps its own name to loopback.
    pub struct Fake(pub &'static str);

    impl Network for Fake {
        fn resolve(&self, host: &str) -> Vec<IpAddr> {
            let ip = match host {
                "127.0.0.1" | "localhost" => "127.0.0.1",
                h if h == self.0 => "127.0.1.1",
                "a" | "10.0.0.1" | "ps-1.svc" => "10.0.0.1",
                "b" | "10.0.0.2" => "10.0.0.2",
                _ => return Vec::new(),
            };
            vec![ip.parse().unwrap()]
        }

        fn is_local(&self, ip: IpAddr) -> bool {
            ip.is_loopback() || ip.to_string() == "10.0.0.1"
        }

        fn hostname(&self) -> String {
            self.0.into()
        }
    }

    fn list(text: &str) -> Vec<String> {
        text.split(',').map(str::to_owned).collect()
    }

    #[test]
    fn a_machine_takes_its_own_seats_of_a_list() {
        let own = |text: &str, host| {
            let seats = seats(&list(text), host, &Fake("me")).unwrap();
            seats.into_iter().map(|s| s.bind.unwrap_or("-".into())).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(own("a:1,b:1,10.0.0.1:2", None), "a:1 - 10.0.0.1:2");
        assert_eq!(own("me:1,b:1", None), "me:1 -");
        assert_eq!(own("me:1,b:1", Some("10.0.0.1")), "10.0.0.1:1 -");
        assert_eq!(own("127.0.0.1:1,localhost:2", None), "127.0.0.1:1 localhost:2");
        assert!(seats(&list("a:0,b:1"), None, &Fake("me")).unwrap_err().contains("other machines need its port"));
        assert_eq!(seats(&list("a"), None, &Fake("me")).unwrap_err(), "endpoint \"a\": expected HOST:PORT");
    }

    #[test]
    fn loopback_is_not_told_to_other_machines() {
        let check = |own: &str, peers: &str| reachable(own, list(peers).iter().map(String::as_str), &Fake("me"));
        let error = check("me:7000", "me:7000,b:7001").unwrap_err();
        assert!(error.contains("\"me:7000\", which is 127.0.1.1 on this machine: b:7001 on another machine"), "{error}");
        assert!(error.contains("--host or POD_IP"), "{error}");
        assert!(check("127.0.0.1:1", "stranger:2").is_err());
        check("127.0.0.1:1", "127.0.0.1:1,localhost:2").unwrap();
        check("a:1", "b:2").unwrap();
    }
}
