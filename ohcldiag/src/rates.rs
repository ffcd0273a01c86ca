//! Counters as rates.

use inspect::Node;
use inspect::Value;
use inspect::ValueKind;
use std::time::Duration;

/// `now` with each counter that `before` has too as its growth per second. Counters that
/// have gone down (another process counts now) stay as they are.
pub(crate) fn since(now: Node, before: &Node, elapsed: Duration) -> Node {
    match (now, before) {
        (Node::Dir(entries), before) => Node::Dir(
            entries
                .into_iter()
                .map(|mut entry| {
                    if let Some(before) = before.get(&entry.name) {
                        entry.node = since(entry.node, before, elapsed);
                    }
                    entry
                })
                .collect(),
        ),
        (Node::Value(now), Node::Value(before)) if now.format.counter => {
            Node::Value(rate(&now, before, elapsed).unwrap_or(now))
        }
        (now, _) => now,
    }
}

fn rate(now: &Value, before: &Value, elapsed: Duration) -> Option<Value> {
    let grown = now.as_u64()?.checked_sub(before.as_u64()?)?;
    let per_second = grown as f64 / elapsed.as_secs_f64();
    let rounded = (per_second * 10.0).round() / 10.0;
    rounded.is_finite().then(|| {
        Value::new(ValueKind::Double(rounded)).with_format(inspect::Format {
            counter: false,
            ..now.format
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use inspect::Query;

    fn sample(counter: u64, level: u64) -> Node {
        let root = inspect::adhoc(move |request| {
            request.respond().child("x", |request| {
                request
                    .respond()
                    .counter("counter", &counter)
                    .field("level", &level);
            });
        });
        Query::new("").evaluate(&root).now()
    }

    #[test]
    fn counters_are_rates_and_levels_are_levels() {
        let elapsed = Duration::from_secs(2);
        let rates = since(sample(15, 3), &sample(10, 9), elapsed);
        assert_eq!(rates.to_string(), "{x: {counter: 2.5, level: 3}}");
    }

    #[test]
    fn a_counter_that_begins_again_is_shown_as_it_is() {
        let elapsed = Duration::from_secs(1);
        let rates = since(sample(4, 0), &sample(10, 0), elapsed);
        assert_eq!(rates.to_string(), "{x: {counter: 4, level: 0}}");
        let rates = since(sample(4, 0), &sample(1, 0), Duration::ZERO);
        assert_eq!(rates.to_string(), "{x: {counter: 4, level: 0}}");
    }
}
