//! Random requests against a model that is too simple to be wrong.

use proptest::prelude::*;
use serde_json::json;

use super::*;

const KEEP: usize = 3;

#[derive(Debug, Clone)]
enum Step {
    Write { value: u8, cas: Option<u64> },
    Patch { value: u8 },
    DeleteNewest,
    Delete(Vec<u64>),
    Undelete(Vec<u64>),
    Destroy(Vec<u64>),
    Remove,
}

fn step() -> impl Strategy<Value = Step> {
    let numbers = || prop::collection::vec(1..8u64, 1..3);
    prop_oneof![
        5 => (any::<u8>(), prop::option::of(0..6u64)).prop_map(|(value, cas)| Step::Write { value, cas }),
        2 => any::<u8>().prop_map(|value| Step::Patch { value }),
        1 => Just(Step::DeleteNewest),
        2 => numbers().prop_map(Step::Delete),
        2 => numbers().prop_map(Step::Undelete),
        1 => numbers().prop_map(Step::Destroy),
        1 => Just(Step::Remove),
    ]
}

#[derive(Clone, PartialEq)]
enum State {
    Live(Value),
    Hidden(Value),
    Destroyed,
}

/// Every version ever written since the key was made, first to newest.
#[derive(Default)]
struct Model(Vec<State>);

impl Model {
    /// 404 without a body, 404 with one, or the value.
    fn read(&self, version: usize) -> (u16, Option<&Value>) {
        let oldest = self.0.len().saturating_sub(KEEP);
        match version.checked_sub(1).and_then(|at| self.0.get(at)) {
            Some(State::Live(value)) if version > oldest => (200, Some(value)),
            Some(_) if version > oldest => (404, Some(&Value::Null)),
            _ => (404, None),
        }
    }

    fn change(&mut self, numbers: &[u64], change: impl Fn(State) -> State) {
        for number in numbers {
            if let Some(state) = self.0.get_mut(*number as usize - 1) {
                *state = change(state.clone());
            }
        }
    }

    fn hide(&mut self, numbers: &[u64]) {
        self.change(numbers, |state| match state {
            State::Live(value) => State::Hidden(value),
            other => other,
        });
    }

    /// What the request should be answered with.
    fn apply(&mut self, step: &Step) -> u16 {
        match step {
            Step::Write { cas: Some(cas), .. } if *cas != self.0.len() as u64 => return 400,
            Step::Write { value, .. } => self.0.push(State::Live(json!({ "w": value }))),
            Step::Patch { value } => {
                let Some(State::Live(old)) = self.0.last() else {
                    return 404;
                };
                let mut new = old.clone();
                new["p"] = json!(value);
                self.0.push(State::Live(new));
            }
            Step::DeleteNewest => {
                if !self.0.is_empty() {
                    self.hide(&[self.0.len() as u64]);
                }
                return 204;
            }
            Step::Delete(numbers) => {
                self.hide(numbers);
                return 204;
            }
            Step::Undelete(numbers) => {
                self.change(numbers, |state| match state {
                    State::Hidden(value) => State::Live(value),
                    other => other,
                });
                return 204;
            }
            Step::Destroy(numbers) => {
                self.change(numbers, |_| State::Destroyed);
                return 204;
            }
            Step::Remove => {
                self.0.clear();
                return 204;
            }
        }
        200
    }
}

async fn ask(bench: &Bench, step: &Step) -> u16 {
    let versions = |numbers: &Vec<u64>| json!({ "versions": numbers });
    let answer = match step {
        Step::Write { value, cas } => {
            let mut body = json!({"data": {"w": value}});
            if let Some(cas) = cas {
                body["options"] = json!({ "cas": cas });
            }
            bench.write("data/k", body).await
        }
        Step::Patch { value } => bench.patch("data/k", json!({"data": {"p": value}})).await,
        Step::DeleteNewest => bench.delete("data/k").await,
        Step::Delete(numbers) => bench.write("delete/k", versions(numbers)).await,
        Step::Undelete(numbers) => bench.write("undelete/k", versions(numbers)).await,
        Step::Destroy(numbers) => bench.write("destroy/k", versions(numbers)).await,
        Step::Remove => bench.delete("metadata/k").await,
    };
    answer.0
}

async fn check(steps: Vec<Step>) {
    let bench = Bench::new();
    bench.write("config", json!({ "max_versions": KEEP })).await;
    let mut model = Model::default();
    for (at, step) in steps.iter().enumerate() {
        assert_eq!(
            ask(&bench, step).await,
            model.apply(step),
            "step {at} of {steps:?}"
        );
        let mut values = 0;
        for version in 1..=model.0.len() + 1 {
            let (status, read) = bench.version("data/k", version as u64).await;
            let (expected, value) = model.read(version);
            assert_eq!(
                (status, read.get("data")),
                (expected, value),
                "version {version} after step {at} of {steps:?}"
            );
            let kept = version + KEEP > model.0.len();
            let state = model.0.get(version - 1);
            values += usize::from(kept && state.is_some_and(|s| *s != State::Destroyed));
        }
        assert_eq!(
            bench.values().len(),
            values,
            "values after step {at} of {steps:?}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn versions_behave_like_the_model(steps in prop::collection::vec(step(), 1..30)) {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(check(steps));
    }
}
