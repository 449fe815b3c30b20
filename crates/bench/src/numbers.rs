//! Medians, percentiles, and the throughput as schedulers' benchmarks count it.

/// The middle one; the mean of the two middle ones of an even count. 0 of none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match (sorted.get(middle), sorted.len() % 2) {
        (None, _) => 0.0,
        (Some(value), 1) => *value,
        (Some(value), _) => (value + sorted[middle - 1]) / 2.0,
    }
}

/// The value below which `share` (0 to 1) of all lie. Sorts. 0 of none.
pub fn percentile(values: &mut [u32], share: f64) -> f64 {
    values.sort_unstable();
    let last = values.len().saturating_sub(1);
    values.get((last as f64 * share).round() as usize).map_or(0.0, |value| f64::from(*value))
}

/// Of instants in microseconds: the mean of the samples of one second each, where the first sample is left out and
/// seconds without any are spread over the next sample. When fewer than two samples remain, all divided by the whole time.
pub fn sampled_per_s(instants_us: &[u64], began_us: u64) -> f64 {
    let Some(last) = instants_us.iter().max() else { return 0.0 };
    let whole_s = (last.saturating_sub(began_us)) as f64 / 1e6;
    let mut seconds = vec![0_u64; whole_s as usize + 1];
    for at in instants_us {
        let second = (at.saturating_sub(began_us) / 1_000_000) as usize;
        if let Some(count) = seconds.get_mut(second) {
            *count += 1;
        }
    }
    // The last second is not a whole one.
    seconds.pop();
    let (mut samples, mut idle) = (Vec::new(), 0_u64);
    for count in seconds {
        match count {
            0 => idle += 1,
            count => {
                let share = count as f64 / (idle + 1) as f64;
                samples.extend((0..=idle).map(|_| share));
                idle = 0;
            }
        }
    }
    if samples.len() < 3 {
        return instants_us.len() as f64 / whole_s.max(1e-3);
    }
    samples.remove(0);
    samples.iter().sum::<f64>() / samples.len() as f64
}

/// To four digits that count.
pub fn rounded(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return 0.0;
    }
    let power = 10_f64.powi(3 - value.abs().log10().floor() as i32);
    let scaled = (value * power).round();
    if power > 0.0 { scaled / power } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_and_the_tail() {
        assert_eq!((median(&[]), median(&[3.0, 1.0, 2.0]), median(&[4.0, 1.0])), (0.0, 2.0, 2.5));
        let mut values: Vec<u32> = (1..=101).rev().collect();
        assert_eq!((percentile(&mut values, 0.5), percentile(&mut values, 0.99)), (51.0, 100.0));
        assert_eq!(percentile(&mut [], 0.5), 0.0);
        assert_eq!((rounded(12_345.678), rounded(0.001_234_56)), (12_350.0, 0.001_235));
    }

    #[test]
    fn idle_seconds_are_spread() {
        let second = 1_000_000;
        let mut instants = vec![0; 50];
        instants.extend(vec![second; 100]);
        instants.extend(vec![3 * second; 100]);
        instants.extend(vec![4 * second; 7]);
        // Samples: 50 (left out), 100, then 100 in two seconds: 50, 50.
        assert_eq!(sampled_per_s(&instants, 0).round(), 67.0);
        assert_eq!(sampled_per_s(&[0, 500_000], 0), 4.0);
    }
}
