//! The values of v1, in which the OCI specification speaks, as v2 wants them. Formulas as runc has them.

use types::oci::LinuxRdma;

/// `cpu.shares` (2 to 262144) to `cpu.weight` (1 to 10000): the quadratic of runc 1.3, which keeps 1024 at 100.
pub(super) fn cpu_weight(shares: u64) -> u64 {
    match shares {
        0 => 0,
        1..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let l = (shares as f64).log2();
            let exponent = (l * l + 125.0 * l) / 612.0 - 7.0 / 34.0;
            (10f64.powf(exponent).ceil() as u64).clamp(1, 10_000)
        }
    }
}

/// `blkio.weight` (10 to 1000) to `io.weight` (1 to 10000), linear.
pub(super) fn io_weight(weight: u16) -> u64 {
    match weight {
        0 => 0,
        weight => 1 + (u64::from(weight).saturating_sub(10)) * 9999 / 990,
    }
}

/// Memory and swap together to swap alone, for `memory.swap.max`. `None`: nothing to write.
///
/// The pair as in the OCI specification: -1 is no limit, 0 or none is not set.
pub(super) fn swap_max(memory_and_swap: i64, memory: i64) -> Result<Option<String>, String> {
    // Unlimited memory with nothing said of swap is unlimited swap.
    if memory == -1 && memory_and_swap == 0 {
        return Ok(Some("max".into()));
    }
    match memory_and_swap {
        0 => Ok(None),
        -1 => Ok(Some("max".into())),
        both if memory <= 0 => Err(format!(
            "the limit of memory and swap together ({both} bytes) needs a memory limit beside it, to tell how much of it is swap"
        )),
        both if both < memory => Err(format!(
            "the limit of memory and swap together ({both} bytes) is below the memory limit ({memory} bytes)"
        )),
        both => Ok(Some((both - memory).to_string())),
    }
}

/// A number of bytes for v2; negative is no limit.
pub(super) fn bytes(value: i64) -> String {
    if value < 0 { "max".into() } else { value.to_string() }
}

/// A limit of processes; Docker's 0 and -1 are no limit.
pub(super) fn pids(limit: i64) -> String {
    if limit <= 0 { "max".into() } else { limit.to_string() }
}

/// Quota and period as `cpu.max` has them.
pub(super) fn cpu_max(quota: Option<i64>, period: Option<u64>) -> Option<String> {
    let quota = quota.filter(|q| *q != 0);
    let period = period.filter(|p| *p != 0);
    match (quota, period) {
        (None, None) => None,
        (quota, period) => {
            let quota = quota.filter(|q| *q > 0).map_or("max".to_owned(), |q| q.to_string());
            Some(format!("{quota} {}", period.unwrap_or(100_000)))
        }
    }
}

/// A line of `rdma.max`.
pub(super) fn rdma(device: &str, limit: &LinuxRdma) -> String {
    let mut line = device.to_owned();
    if let Some(handles) = limit.hca_handles() {
        line += &format!(" hca_handle={handles}");
    }
    if let Some(objects) = limit.hca_objects() {
        line += &format!(" hca_object={objects}");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_values() {
        assert_eq!(cpu_weight(1024), 100);
        assert_eq!(cpu_weight(2), 1);
        assert_eq!(cpu_weight(262_144), 10_000);
        assert_eq!(cpu_weight(0), 0);
        assert_eq!(io_weight(10), 1);
        assert_eq!(io_weight(1000), 10_000);
        assert_eq!(io_weight(0), 0);
        assert_eq!(swap_max(0, 100), Ok(None));
        assert_eq!(swap_max(-1, 100), Ok(Some("max".into())));
        assert_eq!(swap_max(0, -1), Ok(Some("max".into())));
        assert_eq!(swap_max(300, 100), Ok(Some("200".into())));
        assert_eq!(swap_max(100, 100), Ok(Some("0".into())));
        assert!(swap_max(50, 100).is_err());
        assert!(swap_max(50, 0).is_err());
        assert_eq!(cpu_max(None, None), None);
        assert_eq!(cpu_max(Some(50_000), None).as_deref(), Some("50000 100000"));
        assert_eq!(cpu_max(Some(-1), Some(1000)).as_deref(), Some("max 1000"));
        assert_eq!(pids(0), "max");
        assert_eq!(bytes(-1), "max");
    }

    proptest! {
        #[test]
        fn weights_stay_in_range_and_order(a in 1u64..400_000, b in 1u64..400_000) {
            let (low, high) = (a.min(b), a.max(b));
            prop_assert!((1..=10_000).contains(&cpu_weight(low)));
            prop_assert!(cpu_weight(low) <= cpu_weight(high));
        }

        #[test]
        fn io_weights_stay_in_range(weight in 10u16..=1000) {
            prop_assert!((1..=10_000).contains(&io_weight(weight)));
        }

        #[test]
        fn swap_never_panics(both: i64, memory: i64) {
            let _ = swap_max(both, memory);
        }
    }
}
