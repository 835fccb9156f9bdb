//! `network create`, `ls`, `inspect`, `rm`, `prune`, `connect`, `disconnect`, `repair`.

use super::common::{NoFlags, filters, inspect_all, print_pruned, short_id, value};
use crate::args::{lists, network as args, values};
use crate::cli::context::Context;
use crate::cli::failure::{Failure, Outcome};
use crate::cli::verb::Run as Verb;
use crate::format::table::{Columns, Layout, Row};
use serde_json::Value;
use std::collections::HashMap;
use types::docker;

const COLUMNS: Columns = Columns {
    headings: &[
        ("ID", "NETWORK ID"),
        ("Name", "NAME"),
        ("Driver", "DRIVER"),
        ("Scope", "SCOPE"),
        ("IPv4", "IPV4"),
        ("IPv6", "IPV6"),
        ("Internal", "INTERNAL"),
        ("Labels", "LABELS"),
        ("CreatedAt", "CREATED AT"),
    ],
};

/// Flags of `network create`.
#[derive(clap::Args, Debug)]
pub struct Create {
    /// Enable manual container attachment (accepted for compatibility; always so)
    #[arg(long)]
    attachable: bool,
    /// Addresses of others in a subnet, which no container gets (name=address)
    #[arg(long, value_name = "map")]
    aux_address: Vec<String>,
    /// Driver to manage the network: "bridge" or "macvlan"
    #[arg(short, long, value_name = "string", default_value = "bridge")]
    driver: String,
    /// What its containers may reach: "none", "all" or a list of HOST[:PORT][/tcp|udp] and CIDR[:PORT]
    #[arg(long, value_name = "policy")]
    egress: Option<String>,
    /// IPv4 or IPv6 gateway of a subnet
    #[arg(long, value_name = "list")]
    gateway: Vec<String>,
    /// Restrict external access to the network
    #[arg(long)]
    internal: bool,
    /// Allocate container addresses from a sub-range
    #[arg(long, value_name = "list")]
    ip_range: Vec<String>,
    /// IP address management driver
    #[arg(long, value_name = "string", hide = true)]
    ipam_driver: Option<String>,
    /// Enable or disable IPv4 address assignment
    #[arg(long, default_value = "true", hide = true)]
    ipv4: bool,
    /// Enable IPv6 as well
    #[arg(long)]
    ipv6: bool,
    /// Set metadata on a network
    #[arg(long, value_name = "list")]
    label: Vec<String>,
    /// Set driver specific options: host-access, no-metadata, mtu; parent and macvlan_mode of a macvlan
    #[arg(short, long = "opt", value_name = "map")]
    opt: Vec<String>,
    /// Scope of the network
    #[arg(long, value_name = "string", hide = true)]
    scope: Option<String>,
    /// Subnet in CIDR format that represents a network segment
    #[arg(long, value_name = "list")]
    subnet: Vec<String>,
}

impl Verb for Create {
    fn run(self, cx: &Context, words: Vec<String>) -> Outcome {
        // `-o host-access` says `true`.
        let with_value = |o: &String| if o.contains('=') { o.clone() } else { format!("{o}=true") };
        let options: Vec<String> = self.opt.iter().map(with_value).collect();
        let mut options = lists::option_map("opt", &options)?;
        options.extend(self.egress.map(|policy| ("egress".to_owned(), policy)));
        let config = args::ipam(&self.subnet, &self.gateway, &self.ip_range, &self.aux_address)?;
        let request = docker::NetworkCreateRequest {
            name: words[0].clone(),
            driver: Some(self.driver),
            scope: self.scope,
            internal: Some(self.internal),
            attachable: Some(self.attachable),
            ipam: Some(docker::Ipam {
                driver: self.ipam_driver,
                config: (!config.is_empty()).then_some(config),
                options: None,
            }),
            enable_ipv4: Some(self.ipv4),
            enable_ipv6: Some(self.ipv6),
            options: Some(options),
            labels: Some(lists::label_map(&self.label)?),
            ..docker::NetworkCreateRequest::default()
        };
        cx.out.line(&cx.engine()?.create_network(&request)?)?;
        Ok(0)
    }
}

/// Flags of `network ls`.
#[derive(clap::Args, Debug)]
pub struct List {
    /// Provide filter values (e.g. "driver=bridge")
    #[arg(short, long, value_name = "filter")]
    filter: Vec<String>,
    /// Format output using a Go template, 'table TEMPLATE' or 'json'
    #[arg(long, value_name = "string")]
    format: Option<String>,
    /// Do not truncate the output
    #[arg(long)]
    no_trunc: bool,
    /// Only display network IDs
    #[arg(short, long)]
    quiet: bool,
}

impl Verb for List {
    fn run(self, cx: &Context, _: Vec<String>) -> Outcome {
        let format =
            if self.quiet && self.format.is_none() { Some("{{.ID}}") } else { self.format.as_deref() };
        let layout = Layout::new(format, "{{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.Scope}}", &COLUMNS)?;
        let list = cx.engine()?.networks(&filters(&self.filter)?)?;
        let rows: Vec<Row> = list.into_iter().map(|n| row(n, self.no_trunc)).collect();
        cx.out.raw(layout.render(&rows)?.as_bytes())?;
        Ok(0)
    }
}

fn row(n: docker::NetworkSummary, whole: bool) -> Row {
    let labels: HashMap<String, String> = n.labels.unwrap_or_default();
    let mut pairs: Vec<String> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    pairs.sort_unstable();
    let mut row = Row::new([
        ("ID", short_id(&n.id.unwrap_or_default(), whole)),
        ("Name", n.name.unwrap_or_default()),
        ("Driver", n.driver.unwrap_or_default()),
        ("Scope", n.scope.unwrap_or_default()),
        ("IPv4", n.enable_ipv4.unwrap_or(false).to_string()),
        ("IPv6", n.enable_ipv6.unwrap_or(false).to_string()),
        ("Internal", n.internal.unwrap_or(false).to_string()),
        ("Labels", pairs.join(",")),
        ("CreatedAt", n.created.unwrap_or_default()),
    ]);
    row.labels = labels;
    row
}

/// Flags of `network inspect`.
#[derive(clap::Args, Debug)]
pub struct Inspect {
    /// Format output using a Go template or 'json'
    #[arg(short, long, value_name = "string")]
    format: Option<String>,
    /// Verbose output for diagnostics (accepted for compatibility)
    #[arg(short, long)]
    verbose: bool,
}

impl Verb for Inspect {
    fn run(self, cx: &Context, words: Vec<String>) -> Outcome {
        let Self { format, verbose: _ } = self;
        inspect_all(cx, &words, format.as_deref(), |name| look(cx, name))
    }
}

/// One network as JSON.
pub fn look(cx: &Context, name: &str) -> Result<Value, Failure> {
    value(&cx.engine()?.inspect_network(name)?)
}

/// Flags of `network rm`.
#[derive(clap::Args, Debug)]
pub struct Remove {
    /// Do not error if the network does not exist
    #[arg(short, long)]
    force: bool,
}

impl Verb for Remove {
    fn run(self, cx: &Context, words: Vec<String>) -> Outcome {
        let engine = cx.engine()?;
        cx.for_each(&words, |name| {
            match engine.remove_network(name) {
                Err(engine::EngineError::NoSuchNetwork(_)) if self.force => {}
                other => other?,
            }
            Ok(cx.out.line(name)?)
        })
    }
}

/// Flags of `network prune`.
#[derive(clap::Args, Debug)]
pub struct Prune {
    /// Provide filter values (e.g. "until=<timestamp>")
    #[arg(long, value_name = "filter")]
    filter: Vec<String>,
    /// Do not prompt for confirmation
    #[arg(short, long)]
    force: bool,
}

impl Verb for Prune {
    fn run(self, cx: &Context, _: Vec<String>) -> Outcome {
        let filters = filters(&self.filter)?;
        let question = "WARNING! This will remove all custom networks not used by at least one container.";
        if !self.force && !cx.out.confirm(question)? {
            return Ok(1);
        }
        print_pruned(cx, "Deleted Networks:", &cx.engine()?.prune_networks(&filters)?)?;
        Ok(0)
    }
}

/// Flags of `network connect`.
#[derive(clap::Args, Debug)]
pub struct Connect {
    /// Add network-scoped alias for the container
    #[arg(long, value_name = "list")]
    alias: Vec<String>,
    /// driver options for the network
    #[arg(long, value_name = "list")]
    driver_opt: Vec<String>,
    /// Highest gw-priority provides the default gateway. Accepts positive and negative values
    #[arg(long, value_name = "int", value_parser = values::int)]
    gw_priority: Option<i64>,
    /// Let the container reach the host's own services by this network
    #[arg(long)]
    host_access: bool,
    /// IPv4 address (e.g., "172.30.100.104")
    #[arg(long, value_name = "string")]
    ip: Option<String>,
    /// IPv6 address (e.g., "2001:db8::33")
    #[arg(long, value_name = "string")]
    ip6: Option<String>,
    /// MAC address (e.g., "92:d0:c6:0a:29:33")
    #[arg(long, value_name = "string")]
    mac_address: Option<String>,
}

impl Verb for Connect {
    fn run(self, cx: &Context, words: Vec<String>) -> Outcome {
        let mut options = lists::option_map("driver-opt", &self.driver_opt)?;
        options.extend(self.host_access.then(|| (engine::HOST_ACCESS.to_owned(), "true".to_owned())));
        let flag = args::NetworkFlag {
            name: words[0].clone(),
            aliases: self.alias,
            ip: self.ip.as_deref().map(args::address).transpose()?,
            ip6: self.ip6.as_deref().map(args::address).transpose()?,
            mac: self.mac_address.as_deref().map(args::mac).transpose()?,
            priority: self.gw_priority,
            options,
        };
        cx.engine()?.connect_network(&words[0], &words[1], flag.endpoint())?;
        Ok(0)
    }
}

/// Flags of `network disconnect`.
#[derive(clap::Args, Debug)]
pub struct Disconnect {
    /// Force the container to disconnect from a network
    #[arg(short, long)]
    force: bool,
}

impl Verb for Disconnect {
    fn run(self, cx: &Context, words: Vec<String>) -> Outcome {
        cx.engine()?.disconnect_network(&words[0], &words[1], self.force)?;
        Ok(0)
    }
}

/// `network repair`.
#[derive(clap::Args, Debug)]
pub struct Repair {
    #[command(flatten)]
    none: NoFlags,
}

impl Verb for Repair {
    fn run(self, cx: &Context, _: Vec<String>) -> Outcome {
        for name in cx.engine()?.repair_networks()? {
            cx.out.line(&name)?;
        }
        Ok(0)
    }
}
