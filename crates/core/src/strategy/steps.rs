//! Readers made of steps: each step does a piece of work that must not be begun again when a caller stops waiting.

use crate::change::Event;
use crate::error::Result;
use crate::source::Reader;
use async_trait::async_trait;
use futures::FutureExt;
use futures::future::BoxFuture;
use std::collections::VecDeque;

/// Work in steps; each yields events.
#[async_trait]
pub(super) trait Steps: Send + 'static {
    /// The next step's events, which may be none yet; `None` at the end.
    async fn step(&mut self) -> Result<Option<VecDeque<Event>>>;
}

/// A step under way, with the state it took along.
type Running<S> = BoxFuture<'static, (S, Result<Option<VecDeque<Event>>>)>;

/// A reader that is cancel safe, because it owns the step that is under way.
pub(super) struct Stepwise<S> {
    state: Option<S>,
    running: Option<Running<S>>,
    ready: VecDeque<Event>,
}

impl<S: Steps> Stepwise<S> {
    pub(super) fn new(state: S) -> Self {
        Stepwise {
            state: Some(state),
            running: None,
            ready: VecDeque::new(),
        }
    }
}

#[async_trait]
impl<S: Steps> Reader for Stepwise<S> {
    async fn next(&mut self) -> Result<Option<Event>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(Some(event));
            }
            if let Some(mut state) = self.state.take() {
                self.running = Some(
                    async move {
                        let done = state.step().await;
                        (state, done)
                    }
                    .boxed(),
                );
            }
            let Some(running) = &mut self.running else {
                return Ok(None);
            };
            let (state, done) = running.await;
            self.running = None;
            // After an error or the end there is no further step.
            if let Some(events) = done? {
                self.ready = events;
                self.state = Some(state);
            }
        }
    }
}
