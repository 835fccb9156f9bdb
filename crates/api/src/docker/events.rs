//! `events`.

use super::{Answer, Ask, ask};
use crate::work;
use engine::EventOptions;
use std::io::Write;
use std::ops::ControlFlow;

pub async fn events(ask: Ask) -> Answer {
    let options = EventOptions {
        since_ns: ask.query.moment("since")?,
        until_ns: ask.query.moment("until")?,
        filters: ask.query.filters()?,
    };
    let feed = ask.run(move |engine| Ok(engine.event_feed(&options)?)).await?;
    work::follow(ask::head("application/json"), move |out| {
        out.begin();
        // The two that may end it both need the writer.
        let out = std::cell::RefCell::new(out);
        let go_on = |on: bool| if on { ControlFlow::Continue(()) } else { ControlFlow::Break(()) };
        feed.follow(
            &mut |event| {
                let mut out = out.borrow_mut();
                go_on(writeln!(out, "{}", event.docker()).and_then(|()| out.flush()).is_ok())
            },
            &mut || go_on(!out.borrow().is_gone()),
        )?;
        Ok(())
    })
    .await
}
