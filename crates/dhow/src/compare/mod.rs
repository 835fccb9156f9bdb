//! The same workload in each hull, measured on this host: what `dhow compare` prints.
//!
//! [`measure`] runs it and takes the times, [`text`] and [`html`] show them. What was not measured has no figure and is
//! not shown.

pub mod html;
mod http;
pub mod measure;
pub mod probe;
pub mod text;

use serde::Serialize;
use std::time::Duration;
use types::units;

/// What is to be run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Image.
    pub image: String,
    /// Its command; the image's own if empty.
    pub command: Vec<String>,
    /// Measured runs in each hull.
    pub runs: u32,
    /// The workload serves HTTP at this port.
    pub port: Option<u16>,
    /// A workload that has not ended by then is removed.
    pub limit: Duration,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// From the order to the first byte of output.
    FirstOutput,
    /// From the order to the first byte of an answer over HTTP.
    FirstAnswer,
    /// From the order to the end of the workload.
    StartToExit,
    /// PSS of all its processes on this host.
    Memory,
    /// That without the workload's own.
    MemoryBeyond,
    /// Its directory on the disk.
    Disk,
    /// How many have room in the memory that is available.
    Fit,
    /// Arithmetic done in a while, of what this host does.
    Cpu,
    /// Bytes sent to this host in a while, of what this host sends to itself.
    Network,
    /// System calls of this host's kernel within the workload's reach.
    SystemCalls,
    /// Files of this host within its reach.
    HostFiles,
    /// The same for who has broken out into the hypervisor.
    SystemCallsBehind,
    /// The same for who has broken out into the hypervisor.
    HostFilesBehind,
}

/// In the order in which they are shown.
pub const METRICS: [Metric; 13] = [
    Metric::FirstOutput,
    Metric::FirstAnswer,
    Metric::StartToExit,
    Metric::Memory,
    Metric::MemoryBeyond,
    Metric::Disk,
    Metric::Fit,
    Metric::Cpu,
    Metric::Network,
    Metric::SystemCalls,
    Metric::HostFiles,
    Metric::SystemCallsBehind,
    Metric::HostFilesBehind,
];

impl Metric {
    /// What a row begins with.
    pub fn label(self) -> &'static str {
        match self {
            Self::FirstOutput => "time to the first output",
            Self::FirstAnswer => "time to the first HTTP answer",
            Self::StartToExit => "time from start to exit",
            Self::Memory => "memory of one, in all",
            Self::MemoryBeyond => "of it beyond the workload's own",
            Self::Disk => "disk of one, beyond the image",
            Self::Fit => "would fit into the memory available",
            Self::Cpu => "CPU speed, of this host's",
            Self::Network => "network speed, of this host's loopback",
            Self::SystemCalls => "host system calls within reach",
            Self::HostFiles => "host files within reach",
            Self::SystemCallsBehind => "system calls, once broken out",
            Self::HostFilesBehind => "host files, once broken out",
        }
    }

    /// A value with its unit.
    pub fn show(self, value: f64) -> String {
        match self {
            Self::FirstOutput | Self::FirstAnswer | Self::StartToExit => match value {
                v if v < 10.0 => format!("{v:.1} ms"),
                v if v < 10_000.0 => format!("{v:.0} ms"),
                v => format!("{:.1} s", v / 1000.0),
            },
            Self::Memory | Self::MemoryBeyond | Self::Disk => units::binary_size(value),
            Self::HostFiles | Self::HostFilesBehind if value >= engine::MOST_FILES as f64 => {
                format!("over {value:.0}")
            }
            Self::Cpu | Self::Network => format!("{:.0} %", value * 100.0),
            _ => format!("{value:.0}"),
        }
    }
}

/// One metric of one hull.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// Which.
    pub metric: Metric,
    /// Milliseconds, bytes, or a count.
    pub median: f64,
    /// Each run's.
    pub samples: Vec<f64>,
}

/// One hull.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Hull {
    /// `container` or `microVM`.
    pub name: String,
    /// What carries it.
    pub carrier: String,
    /// Why there are no figures.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The kernel, as the embedded image sees it from inside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// Exit code of the workload, where it ended by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// What was measured.
    pub figures: Vec<Figure>,
}

impl Hull {
    /// The median of a metric.
    pub fn median(&self, metric: Metric) -> Option<f64> {
        self.figures.iter().find(|f| f.metric == metric).map(|f| f.median)
    }
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// Image.
    pub image: String,
    /// Command, where one was given.
    pub command: Vec<String>,
    /// Measured runs in each hull.
    pub runs: u32,
    /// This host in a few words.
    pub host: String,
    /// Each hull.
    pub hulls: Vec<Hull>,
}

impl Comparison {
    /// The metrics that at least one hull has, with each hull's.
    pub fn rows(&self) -> impl Iterator<Item = (Metric, Vec<Option<f64>>)> {
        METRICS.into_iter().filter_map(|metric| {
            let values: Vec<_> = self.hulls.iter().map(|h| h.median(metric)).collect();
            values.iter().any(Option::is_some).then_some((metric, values))
        })
    }
}

/// The middle of the samples; none if there are none.
pub fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    sorted.get(sorted.len() / 2 - 1).map(|lower| (lower + upper) / 2.0)
}

#[cfg(test)]
pub(crate) fn example() -> Comparison {
    let figure = |metric, median| Figure { metric, median, samples: vec![median] };
    Comparison {
        image: "hello".into(),
        command: Vec::new(),
        runs: 1,
        host: "Linux 6.18, 2 CPUs".into(),
        hulls: vec![
            Hull {
                name: "container".into(),
                carrier: "namespaces".into(),
                kernel: Some("6.18".into()),
                figures: vec![figure(Metric::FirstOutput, 25.0), figure(Metric::Fit, 1000.0)],
                ..Hull::default()
            },
            Hull {
                name: "microVM".into(),
                carrier: "QEMU".into(),
                kernel: Some("6.1 <cloud>".into()),
                figures: vec![figure(Metric::FirstOutput, 2500.0)],
                ..Hull::default()
            },
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn values_have_units() {
        assert_eq!(Metric::FirstOutput.show(3.12), "3.1 ms");
        assert_eq!(Metric::FirstAnswer.show(1234.4), "1234 ms");
        assert_eq!(Metric::StartToExit.show(12_340.0), "12.3 s");
        assert_eq!(Metric::Memory.show(3.0 * 1024.0 * 1024.0), "3MiB");
    }

    #[test]
    fn what_nobody_measured_is_no_row() {
        let rows: Vec<_> = example().rows().collect();
        assert_eq!(
            rows,
            [(Metric::FirstOutput, vec![Some(25.0), Some(2500.0)]), (Metric::Fit, vec![Some(1000.0), None])]
        );
    }
}
