//! `--log-driver` and `--log-opt`, with Docker's names, defaults and errors.

use std::collections::BTreeMap;
use types::{ErrorKind, Kinded, LogConfig, LogDriver};

/// Why a log driver or one of its options was refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// There is no such driver here.
    #[error("logger: no log driver named {0:?} is registered; json-file, local and none are")]
    UnknownDriver(String),
    /// The driver has no such option.
    #[error("unknown log opt {option:?} for {driver} log driver")]
    UnknownOption {
        /// Its name.
        option: String,
        /// The driver.
        driver: &'static str,
    },
    /// An option's value makes no sense.
    #[error("invalid value {value:?} for log opt {option:?}: {why}")]
    Value {
        /// Its name.
        option: String,
        /// As the user gave it.
        value: String,
        /// What it should be.
        why: &'static str,
    },
    /// Options that contradict each other.
    #[error("{0}")]
    Conflict(&'static str),
}

impl Kinded for OptionError {
    fn kind(&self) -> ErrorKind {
        ErrorKind::Invalid
    }
}

/// Checks a driver's name (empty is the default) and its options.
///
/// `labels`, `labels-regex`, `env`, `env-regex` and `tag` are accepted, but choose among what only the engine knows: it fills in
/// `LogConfig::attrs`.
pub fn parse_options(driver: &str, options: &BTreeMap<String, String>) -> Result<LogConfig, OptionError> {
    let driver = match driver {
        "" | "json-file" => LogDriver::JsonFile,
        "local" => LogDriver::Local,
        "none" => LogDriver::None,
        other => return Err(OptionError::UnknownDriver(other.to_owned())),
    };
    let local = driver == LogDriver::Local;
    let mut config = LogConfig {
        driver,
        max_size: local.then_some(20_000_000),
        max_file: if local { 5 } else { 1 },
        compress: local,
        attrs: BTreeMap::new(),
    };
    for (option, value) in options {
        let bad = |why| OptionError::Value { option: option.clone(), value: value.clone(), why };
        match option.as_str() {
            // Docker takes any option for `none`, and `mode` for every driver.
            _ if driver == LogDriver::None => {}
            "mode" if matches!(value.as_str(), "blocking" | "non-blocking") => {}
            "mode" => return Err(bad("it is blocking or non-blocking")),
            "max-buffer-size" => drop(size(value).ok_or_else(|| bad("it is a size such as 4m"))?),
            "max-size" => {
                let size = match value.as_str() {
                    "-1" if !local => None,
                    text => {
                        Some(size(text).filter(|n| *n > 0).ok_or_else(|| bad("it is a size such as 10m"))?)
                    }
                };
                config.max_size = size;
            }
            "max-file" => {
                let count = value.parse().ok().filter(|n| (1..=10_000).contains(n));
                config.max_file = count.ok_or_else(|| bad("it is a number from 1 on"))?;
            }
            "compress" => {
                config.compress = match value.as_str() {
                    "1" | "t" | "T" | "TRUE" | "true" | "True" => true,
                    "0" | "f" | "F" | "FALSE" | "false" | "False" => false,
                    _ => return Err(bad("it is true or false")),
                };
            }
            "labels" | "labels-regex" | "env" | "env-regex" | "tag" if !local => {}
            _ => {
                return Err(OptionError::UnknownOption { option: option.clone(), driver: driver.as_str() });
            }
        }
    }
    if driver == LogDriver::JsonFile {
        let explicit = options.get("compress").is_some() && config.compress;
        if config.max_size.is_none() && config.max_file > 1 {
            return Err(OptionError::Conflict("max-file cannot be used without max-size"));
        }
        if explicit && (config.max_file < 2 || config.max_size.is_none()) {
            return Err(OptionError::Conflict(
                "compress cannot be true when max-file is less than 2 or max-size is not set",
            ));
        }
    }
    if local && config.max_file < 2 {
        // Nothing is ever rotated aside.
        config.compress = false;
    }
    Ok(config)
}

/// go-units' `FromHumanSize`: decimal units, as Docker takes for logs.
fn size(text: &str) -> Option<u64> {
    let text = text.trim().to_ascii_lowercase();
    let text = text.strip_suffix('b').unwrap_or(&text);
    let (number, unit) = match text.char_indices().last()? {
        (at, unit) if unit.is_ascii_alphabetic() => (text.get(..at)?, Some(unit)),
        _ => (text, None),
    };
    let power = match unit {
        None => 0,
        Some(unit) => "kmgtp".find(unit)? as i32 + 1,
    };
    let bytes = number.trim().parse::<f64>().ok()? * 1000f64.powi(power);
    (bytes.is_finite() && (0.0..i64::MAX as f64).contains(&bytes)).then_some(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(driver: &str, options: &[(&str, &str)]) -> Result<LogConfig, OptionError> {
        parse_options(driver, &options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn defaults_are_dockers() {
        let json = parse("", &[]).unwrap();
        assert_eq!(
            (json.driver, json.max_size, json.max_file, json.compress),
            (LogDriver::JsonFile, None, 1, false)
        );
        let local = parse("local", &[]).unwrap();
        assert_eq!((local.max_size, local.max_file, local.compress), (Some(20_000_000), 5, true));
        let both =
            parse("json-file", &[("max-size", "10m"), ("max-file", "3"), ("compress", "true")]).unwrap();
        assert_eq!((both.max_size, both.max_file, both.compress), (Some(10_000_000), 3, true));
    }

    #[test]
    fn nonsense_is_named() {
        assert!(matches!(parse("syslog", &[]), Err(OptionError::UnknownDriver(_))));
        assert!(parse("json-file", &[("max-sise", "1m")]).unwrap_err().to_string().contains("max-sise"));
        assert!(parse("json-file", &[("max-size", "lots")]).unwrap_err().to_string().contains("lots"));
        assert!(matches!(parse("json-file", &[("max-file", "3")]), Err(OptionError::Conflict(_))));
        assert!(matches!(parse("json-file", &[("compress", "true")]), Err(OptionError::Conflict(_))));
        assert!(parse("none", &[("max-size", "1m")]).is_ok());
    }
}
