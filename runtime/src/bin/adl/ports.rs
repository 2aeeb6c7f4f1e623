//! Ports that lead into a sandbox and out of it, written as docker and ssh write them.

use std::fmt::Write as _;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _};

use adl_runtime::{Config, Error, Forward, Network, Publish, Sandbox};
use clap::Args;

use crate::output::say;
use crate::values::CliResult;

#[derive(Args)]
pub(crate) struct PortOptions {
    /// Have a port of this machine lead to the TCP server on the last PORT inside, for as long as
    /// the command runs: whoever reaches ADDR (by default 127.0.0.1, this machine alone) reaches
    /// the server. With 0 as the first PORT any is taken, and adl says which on stderr. IPv6 is in
    /// brackets, as `[::1]:8080:80`
    #[arg(short, long, value_name = "[ADDR:]PORT:PORT", value_parser = publish)]
    publish: Vec<Publish>,

    /// Have PORT of 127.0.0.1 inside lead to a TCP server that this machine reaches, and nowhere
    /// else. A name is looked up once, when adl begins; its addresses are tried in turn, 16 at
    /// most. IPv6 is in brackets, as `5432:[::1]:5432`
    #[arg(long, value_name = "PORT:HOST:PORT", value_parser = forward)]
    forward: Vec<ForwardTo>,
}

/// Where a port inside is to lead to, not yet looked up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ForwardTo {
    port: u16,
    host: Host,
    to: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Host {
    Address(IpAddr),
    Name(String),
}

/// The most addresses of a name that are tried: as many as the library takes.
const MOST_ADDRESSES: usize = 16;

impl PortOptions {
    /// Puts the ports into a configuration. What names stand for is looked up.
    pub(crate) fn apply(&self, config: &mut Config) -> CliResult<()> {
        if config.network == Network::Host && !(self.publish.is_empty() && self.forward.is_empty())
        {
            const WHY: &str = "--publish and --forward are for a network of the sandbox's own: \
                               with `--network host` servers inside are on this machine's ports \
                               already, and reach what it reaches";
            return Err(WHY.into());
        }
        config.publish.clone_from(&self.publish);
        config.forward = self.forward.iter().map(ForwardTo::settle).collect::<CliResult<_>>()?;
        Ok(())
    }

    /// Says which ports were taken where any would do.
    pub(crate) fn tell(&self, sandbox: &Sandbox) {
        let ports = sandbox.ports();
        let published = ports.iter().filter_map(|port| Some((port.address(), port.published()?)));
        for (asked, (address, inside)) in self.publish.iter().zip(published) {
            if asked.address.port() == 0 {
                say(format_args!("{address} leads to port {inside} inside"));
            }
        }
    }
}

impl ForwardTo {
    fn settle(&self) -> CliResult<Forward> {
        let mut to = match &self.host {
            Host::Address(ip) => vec![SocketAddr::new(*ip, self.to)],
            Host::Name(name) => look_up(name, self.to)?,
        };
        to.truncate(MOST_ADDRESSES);
        let address = (Ipv4Addr::LOCALHOST, self.port).into();
        Ok(Forward { address, to, limits: Default::default() })
    }
}

/// The addresses that a name has, each once.
fn look_up(name: &str, port: u16) -> CliResult<Vec<SocketAddr>> {
    let found = (name, port).to_socket_addrs();
    let failed = |error: &dyn std::fmt::Display| {
        format!(
            "--forward: this machine knows no address of {name:?}: {error}; `getent ahosts {name}` \
             looks it up as adl does"
        )
    };
    let mut addresses = Vec::new();
    for address in found.map_err(|error| failed(&error))? {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    match addresses.is_empty() {
        true => Err(failed(&"it has none").into()),
        false => Ok(addresses),
    }
}

/// What is said of a port that could not be had when a sandbox was created.
pub(crate) fn not_had(error: &Error) -> Option<String> {
    let Error::Socket { address, is_inside, source, .. } = error else { return None };
    let is_published = !is_inside;
    let option = if is_published { "--publish" } else { "--forward" };
    let place = if is_published { "" } else { " inside" };
    let mut text = format!("{option}: could not listen on {address}{place}: {source}");
    if let Some(advice) = advice(source, *address, is_published) {
        // To a String nothing fails.
        let _ = write!(text, "; {advice}");
    }
    Some(text)
}

fn advice(why: &io::Error, address: SocketAddr, is_published: bool) -> Option<&'static str> {
    match (why.kind(), is_published) {
        (ErrorKind::AddrInUse, true) => {
            Some("a program of this machine has that port: name another, or 0 for any")
        }
        (ErrorKind::AddrInUse, false) => Some("each port inside leads to one server: name another"),
        (ErrorKind::AddrNotAvailable, _) => {
            Some("this machine has no such address: `ip address` lists those that it has")
        }
        (ErrorKind::PermissionDenied, true) if address.port() < 1024 => {
            Some("ports below 1024 are for root here: name a higher one, as 8080")
        }
        _ => None,
    }
}

/// Reads `[ADDR:]PORT:PORT`, as docker does where it means TCP and single ports.
fn publish(text: &str) -> Result<Publish, String> {
    const FORM: &str = "takes [ADDR:]PORT:PORT, as 8080:80 or [::1]:8080:80, of which the first \
                        PORT is this machine's: 0 for any";
    let text = without_protocol(text)?;
    let (outside, inside) = text.rsplit_once(':').ok_or(FORM)?;
    let (ip, outside) = match outside.rsplit_once(':') {
        None => (Ipv4Addr::LOCALHOST.into(), outside),
        Some((ip, outside)) => (address(ip)?, outside),
    };
    if outside.is_empty() || inside.is_empty() {
        return Err(FORM.to_owned());
    }
    let (outside, inside) = (port(outside)?, port(inside)?);
    if inside == 0 {
        return Err("the last port is that of a server inside, and none has port 0".to_owned());
    }
    Ok(Publish::new((ip, outside), inside))
}

/// Reads `PORT:HOST:PORT`, as `ssh -L` does.
fn forward(text: &str) -> Result<ForwardTo, String> {
    const FORM: &str = "takes PORT:HOST:PORT, as 5432:db.internal:5432 or 5432:[::1]:5432, of \
                        which the first PORT is that inside";
    let text = without_protocol(text)?;
    let (inside, rest) = text.split_once(':').ok_or(FORM)?;
    let (host, to) = rest.rsplit_once(':').ok_or(FORM)?;
    if inside.is_empty() || host.is_empty() || to.is_empty() {
        return Err(FORM.to_owned());
    }
    let (port, to) = (port(inside)?, port(to)?);
    if port == 0 || to == 0 {
        return Err("a server has no port 0: name the port inside, and that of the server".into());
    }
    let host = match host.parse::<Ipv4Addr>() {
        Ok(ip) => Host::Address(ip.into()),
        Err(_) if host.contains([':', '[', ']']) => Host::Address(address(host)?),
        Err(_) if host.contains(['/', '@', '\0']) || host.chars().any(char::is_whitespace) => {
            return Err(format!("{host:?} is no name of a machine, and no address of one"));
        }
        Err(_) => Host::Name(host.to_owned()),
    };
    if matches!(host, Host::Address(ip) if ip.is_unspecified()) {
        let why = "is all addresses of a machine, and no server's: name one, as 127.0.0.1";
        return Err(format!("{rest:?} {why}"));
    }
    Ok(ForwardTo { port, host, to })
}

/// What is before docker's `/tcp`.
fn without_protocol(text: &str) -> Result<&str, String> {
    match text.rsplit_once('/') {
        None => Ok(text),
        Some((rest, "tcp")) => Ok(rest),
        Some((_, protocol)) => {
            Err(format!("{protocol:?} is not passed on: only TCP is, which may be left out"))
        }
    }
}

/// Reads an address of this machine; IPv6 in brackets.
fn address(text: &str) -> Result<IpAddr, String> {
    if let Some(inner) = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
        return match inner.parse::<Ipv6Addr>() {
            Ok(ip) => Ok(ip.into()),
            Err(_) => Err(format!("{inner:?} is no IPv6 address")),
        };
    }
    match text.parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) => Ok(ip.into()),
        Ok(IpAddr::V6(_)) => Err(format!("an IPv6 address is in brackets, as [{text}]")),
        Err(_) if text.contains([':', '[', ']']) => {
            Err(format!("{text:?} is no address; one of IPv6 is in brackets, as [::1]"))
        }
        Err(_) => Err(format!(
            "{text:?} is no address of this machine: 127.0.0.1 is reached from here alone, 0.0.0.0 \
             from everywhere"
        )),
    }
}

fn port(text: &str) -> Result<u16, String> {
    if text.contains('-') {
        return Err(format!(
            "{text:?}: a range of ports is not there: name each port by an option of its own"
        ));
    }
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse()
        .ok()
        .filter(|_| is_number)
        .ok_or_else(|| format!("a port is a number up to 65535, not {text:?}"))
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use adl_runtime::{Config, Network, Publish};

    use super::{ForwardTo, Host, PortOptions, forward, publish};

    const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    const LOCAL_6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

    #[test]
    fn published_ports_are_read_as_docker_reads_them() {
        for (text, ip, outside) in [
            ("8080:80", LOCAL, 8080),
            ("0:80", LOCAL, 0),
            ("8080:80/tcp", LOCAL, 8080),
            ("127.0.0.1:0:80", LOCAL, 0),
            ("0.0.0.0:80:80", Ipv4Addr::UNSPECIFIED.into(), 80),
            ("[::1]:8080:80", LOCAL_6, 8080),
            ("[::]:65535:80/tcp", Ipv6Addr::UNSPECIFIED.into(), 65_535),
        ] {
            assert_eq!(publish(text), Ok(Publish::new((ip, outside), 80)), "{text}");
        }
        for (wrong, told) in [
            ("", "[ADDR:]PORT:PORT"),
            ("80", "0 for any"),
            (":80", "0 for any"),
            ("127.0.0.1::80", "0 for any"),
            ("8080:", "[ADDR:]PORT:PORT"),
            ("8080:0", "server inside"),
            ("8080:80/udp", "only TCP"),
            ("8080:80/", "only TCP"),
            ("8000-8010:80", "range"),
            ("8080:80-90", "range"),
            ("65536:80", "65535"),
            ("+8080:80", "65535"),
            ("http:80", "65535"),
            ("localhost:8080:80", "127.0.0.1"),
            ("::1:8080:80", "[::1]"),
            ("[::1:8080:80", "in brackets"),
            ("[::g]:8080:80", "\"::g\""),
            ("[127.0.0.1]:8080:80", "no IPv6"),
        ] {
            let why = publish(wrong).unwrap_err();
            assert!(why.contains(told), "{wrong}: {why}");
        }
    }

    #[test]
    fn forwarded_ports_are_read_as_ssh_reads_them() {
        for (text, host) in [
            ("5432:db.internal:5433", Host::Name("db.internal".to_owned())),
            ("5432:localhost:5433/tcp", Host::Name("localhost".to_owned())),
            ("5432:127.0.0.1:5433", Host::Address(LOCAL)),
            ("5432:[::1]:5433", Host::Address(LOCAL_6)),
        ] {
            assert_eq!(forward(text), Ok(ForwardTo { port: 5432, host, to: 5433 }), "{text}");
        }
        for (wrong, told) in [
            ("", "PORT:HOST:PORT"),
            ("5432", "PORT:HOST:PORT"),
            ("5432:db", "PORT:HOST:PORT"),
            ("5432::5432", "PORT:HOST:PORT"),
            ("db:5432:5432", "not \"db\""),
            ("0:db:5432", "port 0"),
            ("5432:db:0", "port 0"),
            ("5432:::1:5432", "in brackets"),
            ("5432:[::1:5432", "in brackets"),
            ("5432:db:5432/udp", "only TCP"),
            ("5432:db:5432-5440", "range"),
            ("5432:http://db:80", "only TCP"),
            ("5432:a b:80", "no name"),
            ("5432:0.0.0.0:80", "name one"),
            ("5432:[::]:80", "name one"),
        ] {
            let why = forward(wrong).unwrap_err();
            assert!(why.contains(told), "{wrong}: {why}");
        }
    }

    #[test]
    fn a_name_is_looked_up_and_each_of_its_addresses_is_there_once() {
        let options = |texts: &[&str]| PortOptions {
            publish: Vec::new(),
            forward: texts.iter().map(|text| forward(text).unwrap()).collect(),
        };
        let mut config = Config::default();
        options(&["5432:localhost:80"]).apply(&mut config).unwrap();
        let to = &config.forward.first().unwrap().to;
        assert!(!to.is_empty() && to.iter().all(|to| to.ip().is_loopback()), "{to:?}");
        let mut once = to.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(once.len(), to.len(), "{to:?}");
        // No server of names is asked for one that is so long.
        let absent = "a".repeat(64);
        let one = options(&[&format!("1:{absent}:1")]);
        let error = one.apply(&mut config).unwrap_err().to_string();
        assert!(error.contains(&absent) && error.contains("getent"), "{error}");
        // There the ports are the machine's.
        config.network = Network::Host;
        let error = options(&["5432:localhost:80"]).apply(&mut config).unwrap_err().to_string();
        assert!(error.contains("--network host"), "{error}");
        assert!(options(&[]).apply(&mut config).is_ok());
    }
}
