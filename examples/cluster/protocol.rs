//! What the parent and its nodes say to each other: lines of text on standard input and output.

use std::fmt;
use std::str::FromStr;

use larder::BoxError;

use crate::latency::Histogram;

/// A line from the parent to a node.
pub enum ToNode {
    /// A file that callers will ask for. Said once for each, before `Peers`.
    File(String),
    /// The URLs of all nodes. The node answers `Ready`.
    Peers(Vec<String>),
    /// Begin to read.
    Run,
    /// Answer with a `Report`.
    Report,
    /// Stop reading; answer with a last `Report`, then `Stopped`; go on serving the others.
    Stop,
}

/// A line from a node to the parent.
pub enum FromNode {
    /// The port that peers reach.
    Listening(u16),
    Ready,
    /// A file is read from the disk. Said before it is read, so that no read goes uncounted when
    /// the node is killed.
    Loaded(String),
    /// A caller saw an error.
    Failed(String),
    /// A value was not what the file holds.
    Differs(String),
    Report(Box<Report>),
    Stopped,
}

/// What a node has done since it was started.
#[derive(Clone, Default)]
pub struct Report {
    pub counts: Counts,
    /// The times of callers' gets since the last report.
    pub latency: Histogram,
}

/// Numbers with names, written down once for their order on the line, their sums and their
/// differences.
macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// The numbers of a [`Report`]. Each only grows.
        #[derive(Clone, Copy, Default)]
        pub struct Counts {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counts {
            pub fn plus(&self, other: &Counts) -> Counts {
                Counts { $($name: self.$name + other.$name,)* }
            }

            pub fn since(&self, earlier: &Counts) -> Counts {
                Counts { $($name: self.$name.saturating_sub(earlier.$name),)* }
            }

            fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                $(write!(f, " {}", self.$name)?;)*
                Ok(())
            }

            fn read<'a>(numbers: &mut impl Iterator<Item = &'a str>) -> Result<Counts, BoxError> {
                Ok(Counts { $($name: numbers.next().ok_or("a number is missing")?.parse()?,)* })
            }
        }
    };
}

counts! {
    /// Gets of callers that ended, well or not.
    calls,
    /// Gets of callers that ended with an error.
    errors,
    /// Bytes that callers got and that are the file's.
    bytes_equal,
    /// Values that callers got and that are not the file's.
    differing,
    /// The group's gets: those of callers and those of peers.
    gets,
    main_hits,
    hot_hits,
    peer_loads,
    peer_errors,
    local_loads,
}

impl fmt::Display for ToNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ToNode::File(name) => write!(f, "file {name}"),
            ToNode::Peers(urls) => write!(f, "peers {}", urls.join(" ")),
            ToNode::Run => write!(f, "run"),
            ToNode::Report => write!(f, "report"),
            ToNode::Stop => write!(f, "stop"),
        }
    }
}

impl FromStr for ToNode {
    type Err = BoxError;

    fn from_str(line: &str) -> Result<Self, BoxError> {
        Ok(match first_word(line) {
            ("file", name) => ToNode::File(name.into()),
            ("peers", urls) => ToNode::Peers(urls.split(' ').map(str::to_owned).collect()),
            ("run", "") => ToNode::Run,
            ("report", "") => ToNode::Report,
            ("stop", "") => ToNode::Stop,
            _ => return Err(format!("the parent said {line:?}").into()),
        })
    }
}

impl fmt::Display for FromNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FromNode::Listening(port) => write!(f, "listening {port}"),
            FromNode::Ready => write!(f, "ready"),
            FromNode::Loaded(name) => write!(f, "loaded {name}"),
            // Texts of errors may hold anything, also the end of a line.
            FromNode::Failed(text) => write!(f, "failed {}", text.escape_debug()),
            FromNode::Differs(text) => write!(f, "differs {text}"),
            FromNode::Report(report) => {
                write!(f, "report")?;
                report.counts.write(f)?;
                for (bucket, count) in report.latency.non_empty() {
                    write!(f, " {bucket}:{count}")?;
                }
                Ok(())
            }
            FromNode::Stopped => write!(f, "stopped"),
        }
    }
}

impl FromStr for FromNode {
    type Err = BoxError;

    fn from_str(line: &str) -> Result<Self, BoxError> {
        Ok(match first_word(line) {
            ("listening", port) => FromNode::Listening(port.parse()?),
            ("ready", "") => FromNode::Ready,
            ("loaded", name) => FromNode::Loaded(name.into()),
            ("failed", text) => FromNode::Failed(text.into()),
            ("differs", text) => FromNode::Differs(text.into()),
            ("report", rest) => FromNode::Report(Box::new(rest.parse()?)),
            ("stopped", "") => FromNode::Stopped,
            _ => return Err(format!("a node said {line:?}").into()),
        })
    }
}

impl FromStr for Report {
    type Err = BoxError;

    fn from_str(line: &str) -> Result<Self, BoxError> {
        let mut words = line.split(' ');
        let counts = Counts::read(&mut words)?;
        let mut latency = Histogram::default();
        for word in words {
            let (bucket, count) = word.split_once(':').ok_or("a bucket is no pair")?;
            latency.add(bucket.parse()?, count.parse()?);
        }
        Ok(Report { counts, latency })
    }
}

fn first_word(line: &str) -> (&str, &str) {
    line.split_once(' ').unwrap_or((line, ""))
}
