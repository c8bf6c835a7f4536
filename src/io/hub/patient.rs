//! Waiting for the network in short slices, so that Ctrl-C is heard and silence has an end.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, NextTimeout, Transport};

/// How long the flag may go unseen.
const SLICE: Duration = Duration::from_millis(100);

/// Wraps every connection into a [`Patient`].
#[derive(Debug)]
pub(super) struct PatientConnector {
    pub(super) cancel: Option<Arc<AtomicBool>>,
    pub(super) idle: Duration,
}

impl<In: Transport> Connector<In> for PatientConnector {
    type Out = Patient<In>;

    fn connect(
        &self,
        _details: &ConnectionDetails<'_>,
        chained: Option<In>,
    ) -> Result<Option<Patient<In>>, ureq::Error> {
        Ok(chained.map(|inner| Patient { inner, cancel: self.cancel.clone(), idle: self.idle }))
    }
}

/// A connection that gives up when it was silent for `idle`, or when it is told to.
#[derive(Debug)]
pub(super) struct Patient<In: Transport> {
    inner: In,
    cancel: Option<Arc<AtomicBool>>,
    idle: Duration,
}

impl<In: Transport> Transport for Patient<In> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        self.inner.transmit_output(amount, timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        let begun = Instant::now();
        loop {
            if self.cancel.as_ref().is_some_and(|flag| flag.load(Ordering::Relaxed)) {
                return Err(io::Error::other("stopped").into());
            }
            let slice = NextTimeout { per_read: Some(SLICE.into()), ..timeout };
            match self.inner.await_input(slice) {
                Err(ureq::Error::Timeout(ureq::Timeout::PerRead))
                    if begun.elapsed() < self.idle => {}
                other => return other,
            }
        }
    }

    fn is_open(&mut self) -> bool {
        self.inner.is_open()
    }

    fn is_tls(&self) -> bool {
        self.inner.is_tls()
    }
}
