//! Progress of pulls, pushes and loads: bars on a terminal, plain lines otherwise, neither when quiet.

use image::{LayerEvent, Plain, Progress, Quiet};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::collections::HashMap;
use std::io::{IsTerminal, stderr, stdout};
use std::sync::Mutex;

/// For a command whose result is the progress: `pull`, `push`, `load`.
pub fn on_stdout(quiet: bool) -> Box<dyn Progress> {
    if quiet {
        Box::new(Quiet)
    } else if stdout().is_terminal() {
        Box::new(Bars::new(ProgressDrawTarget::stdout()))
    } else {
        Box::new(Plain::new(stdout()))
    }
}

/// For a command whose result is something else: the pull of a `run`.
pub fn on_stderr(quiet: bool) -> Box<dyn Progress> {
    if quiet {
        Box::new(Quiet)
    } else if stderr().is_terminal() {
        Box::new(Bars::new(ProgressDrawTarget::stderr()))
    } else {
        Box::new(Plain::new(stderr()))
    }
}

/// One bar a layer. Nothing is set up before the first event: most runs have none.
struct Bars {
    target: Mutex<Option<ProgressDrawTarget>>,
    state: Mutex<Option<State>>,
}

struct State {
    all: MultiProgress,
    bars: HashMap<String, ProgressBar>,
}

impl Bars {
    fn new(target: ProgressDrawTarget) -> Self {
        Self { target: Mutex::new(Some(target)), state: Mutex::new(None) }
    }

    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock().unwrap_or_else(|e| e.into_inner());
        f(state.get_or_insert_with(|| {
            let target = self.target.lock().unwrap_or_else(|e| e.into_inner()).take();
            State {
                all: MultiProgress::with_draw_target(target.unwrap_or_else(ProgressDrawTarget::stderr)),
                bars: HashMap::new(),
            }
        }))
    }
}

/// `cccccccccccc: Downloading [====>    ]  1.2 MB/3.4 MB`.
fn moving() -> ProgressStyle {
    styled("{prefix}: {msg} [{bar:40}] {decimal_bytes}/{decimal_total_bytes}").progress_chars("=> ")
}

fn resting() -> ProgressStyle {
    styled("{prefix}: {msg}")
}

fn styled(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl Progress for Bars {
    fn layer(&self, layer: &str, event: LayerEvent) {
        self.with(|s| {
            let bar = s.bars.entry(layer.to_owned()).or_insert_with(|| {
                let bar = s.all.add(ProgressBar::no_length());
                bar.set_style(resting());
                bar.set_prefix(layer.to_owned());
                bar
            });
            if bar.message() != event.words() {
                bar.set_style(if event.amount().is_some() { moving() } else { resting() });
                bar.set_message(event.words());
            }
            match event.amount() {
                Some((done, total)) => {
                    bar.set_length(total);
                    bar.set_position(done);
                }
                None => bar.tick(),
            }
        });
    }

    fn status(&self, line: &str) {
        self.with(|s| {
            // Above the bars; a terminal that went away is nobody's failure.
            let _ = s.all.println(line);
        });
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        if let Some(s) = self.state.get_mut().unwrap_or_else(|e| e.into_inner()) {
            for bar in s.bars.values() {
                bar.abandon();
            }
        }
    }
}
