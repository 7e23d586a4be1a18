//! Pages in, whole records out.

use crate::error::{Error, Result};
use crate::lsn::Lsn;
use crate::page::{Identity, PAGE_SIZE, PageHeader};
use crate::record::{HEADER, Header, MAX_RECORD, Record};

const PAGE: u64 = PAGE_SIZE as u64;

/// Turns pages into records. It remembers an unfinished record between calls of [`Decoder::feed`], so segments may be
/// handed over in pieces of any number of pages.
#[derive(Debug, Clone)]
pub struct Decoder {
    identity: Identity,
    /// The next byte that was not looked at yet.
    next: Lsn,
    /// Where the last whole record ended, as a server says it: behind it the header of a page may follow.
    end: Lsn,
    state: State,
    /// The last whole record: the one that follows names it.
    previous: Option<Lsn>,
    timeline: u32,
    /// The collected bytes of a record that crosses pages.
    partial: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// A record starts here.
    Boundary,
    /// The rest of a record whose beginning was not seen.
    Tail { remaining: usize },
    /// Nothing known: the first page header will tell.
    Lost,
    /// In the middle of a record.
    Inside { start: Lsn, total: usize },
    /// The server went on with the next segment; what stands between has no meaning.
    Switched,
}

/// Where the next record was found.
enum Found {
    InChunk(Lsn, usize, usize),
    InPartial(Lsn),
}

impl Decoder {
    /// Begins with the record that starts at `start`.
    pub fn at(identity: Identity, start: Lsn) -> Self {
        Self::new(identity, start, State::Boundary)
    }

    /// Begins with the first record that starts at or after the page that holds `from`.
    pub fn seek(identity: Identity, from: Lsn) -> Self {
        Self::new(identity, Lsn(from.0 & !(PAGE - 1)), State::Lost)
    }

    fn new(identity: Identity, next: Lsn, state: State) -> Self {
        Decoder {
            identity,
            next,
            end: next,
            state,
            previous: None,
            timeline: 0,
            partial: Vec::new(),
        }
    }

    /// The server whose log it reads.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The timeline of the last page seen; zero before the first.
    pub fn timeline(&self) -> u32 {
        self.timeline
    }

    /// The end of the last whole record, where a server that has replayed it says that it stands. The next record starts
    /// here, or behind the header of the page that starts here.
    pub fn position(&self) -> Lsn {
        match self.state {
            State::Tail { .. } | State::Lost => self.next,
            State::Boundary | State::Inside { .. } | State::Switched => self.end,
        }
    }

    /// Whether everything up to [`Decoder::position`] was understood and nothing is unfinished.
    pub fn at_boundary(&self) -> bool {
        matches!(self.state, State::Boundary | State::Switched)
    }

    /// The page from which the next bytes are needed.
    pub fn needs(&self) -> Lsn {
        Lsn(self.next.0 & !(PAGE - 1))
    }

    /// Hands over whole pages that start at `at`. Bytes before [`Decoder::needs`] are passed over.
    pub fn feed<'d, 'b>(&'d mut self, at: Lsn, bytes: &'b [u8]) -> Result<Feed<'d, 'b>> {
        if at > self.needs() || !at.0.is_multiple_of(PAGE) {
            return Err(Error::OutOfOrder {
                expected: self.needs(),
                found: at,
            });
        }
        let whole = bytes.len() - bytes.len() % PAGE_SIZE;
        let mut feed = Feed {
            decoder: self,
            at,
            bytes: &bytes[..whole],
        };
        feed.enter_page()?;
        Ok(feed)
    }

    fn page_end(&self) -> Lsn {
        Lsn((self.next.0 | (PAGE - 1)).saturating_add(1))
    }
}

/// Pages that are being decoded.
#[derive(Debug)]
pub struct Feed<'d, 'b> {
    decoder: &'d mut Decoder,
    at: Lsn,
    bytes: &'b [u8],
}

impl Feed<'_, '_> {
    /// The next whole record, or None when these pages hold no more.
    #[allow(clippy::should_implement_trait, reason = "a record lives only until the next one")]
    pub fn next(&mut self) -> Result<Option<Record<'_>>> {
        let found = loop {
            let Some(offset) = self.offset() else { return Ok(None) };
            if self.decoder.next.0.is_multiple_of(PAGE) {
                self.header(offset)?;
                continue;
            }
            let d = &mut *self.decoder;
            let room = (d.page_end().0 - d.next.0) as usize;
            match d.state {
                State::Boundary => {
                    let start = d.next;
                    let total = match self.bytes.get(offset..offset + 4) {
                        Some(&[a, b, c, e]) => u32::from_le_bytes([a, b, c, e]) as usize,
                        _ => return Ok(None),
                    };
                    match total {
                        0 => return Err(Error::EndOfLog { at: start }),
                        HEADER..=MAX_RECORD => {}
                        n => return Err(Error::record(start, format!("it cannot have {n} bytes"))),
                    }
                    if total <= room {
                        d.next = Lsn(start.0 + total as u64).aligned();
                        break Found::InChunk(start, offset, total);
                    }
                    d.partial.clear();
                    d.partial.extend_from_slice(&self.bytes[offset..offset + room]);
                    d.next = d.page_end();
                    d.state = State::Inside { start, total };
                }
                State::Inside { start, total } => {
                    let take = room.min(total - d.partial.len());
                    d.partial.extend_from_slice(&self.bytes[offset..offset + take]);
                    d.next = Lsn(d.next.0 + take as u64);
                    if d.partial.len() == total {
                        d.next = d.next.aligned();
                        d.state = State::Boundary;
                        break Found::InPartial(start);
                    }
                }
                State::Tail { remaining } => {
                    let take = room.min(remaining);
                    d.next = Lsn(d.next.0 + take as u64);
                    d.state = State::Tail {
                        remaining: remaining - take,
                    };
                    if take == remaining {
                        d.next = d.next.aligned();
                        d.end = d.next;
                        d.state = State::Boundary;
                    }
                }
                State::Lost | State::Switched => {
                    // Only a page header leads on from here.
                    d.next = d.page_end();
                }
            }
        };
        let (start, bytes) = match found {
            Found::InChunk(start, offset, total) => (start, &self.bytes[offset..offset + total]),
            Found::InPartial(start) => (start, self.decoder.partial.as_slice()),
        };
        let header = Header::read(start, bytes)?;
        match self.decoder.previous {
            Some(previous) if header.previous != previous => {
                let what = format!("it follows {}, but {previous} stands before it", header.previous);
                return Err(Error::record(start, what));
            }
            None if header.previous >= start => {
                return Err(Error::record(
                    start,
                    format!("it follows {}, which comes later", header.previous),
                ));
            }
            _ => {}
        }
        self.decoder.previous = Some(start);
        if header.is_switch() {
            let size = self.decoder.identity.segment_size;
            if size.offset(self.decoder.next) != 0 {
                self.decoder.next = size.start(size.number(self.decoder.next) + 1);
                self.decoder.state = State::Switched;
            }
        }
        let end = self.decoder.next;
        self.decoder.end = end;
        Ok(Some(Record::new(
            self.decoder.identity.major,
            start,
            end,
            header,
            bytes,
        )))
    }

    /// Where the next byte stands in these pages; None past their end.
    fn offset(&self) -> Option<usize> {
        let offset = usize::try_from(self.decoder.next.0.checked_sub(self.at.0)?).ok()?;
        (offset < self.bytes.len()).then_some(offset)
    }

    /// A decoder that was told to begin inside a page has not seen that page's header.
    fn enter_page(&mut self) -> Result<()> {
        let d = &mut *self.decoder;
        let page = d.needs();
        if d.timeline != 0 || page == d.next || d.state != State::Boundary {
            return Ok(());
        }
        let offset = (page.0 - self.at.0) as usize;
        let Some(bytes) = self.bytes.get(offset..) else {
            return Ok(());
        };
        if bytes.is_empty() {
            return Ok(());
        }
        let header = PageHeader::read(page, bytes)?;
        header.check(page, &d.identity)?;
        if d.next.0 - page.0 < header.len() as u64 {
            return Err(Error::record(d.next, "a record cannot start inside a page header"));
        }
        d.timeline = header.timeline;
        Ok(())
    }

    fn header(&mut self, offset: usize) -> Result<()> {
        let d = &mut *self.decoder;
        let page = d.next;
        let header = PageHeader::read(page, &self.bytes[offset..])?;
        header.check(page, &d.identity)?;
        if header.timeline < d.timeline {
            let what = format!("timeline {} after timeline {}", header.timeline, d.timeline);
            return Err(Error::page(page, what));
        }
        d.state = match d.state {
            State::Inside { .. } if header.overwritten => State::Boundary,
            State::Inside { start, total } => {
                if !header.continued {
                    return Err(Error::page(page, format!("record {start} is not continued")));
                }
                let expected = total - d.partial.len();
                if header.remaining as usize != expected {
                    let what = format!(
                        "record {start} should have {expected} more bytes, not {}",
                        header.remaining
                    );
                    return Err(Error::page(page, what));
                }
                State::Inside { start, total }
            }
            State::Tail { remaining } => {
                if !header.continued || header.remaining as usize != remaining {
                    return Err(Error::page(page, "the rest of an earlier record is missing"));
                }
                State::Tail { remaining }
            }
            State::Lost if header.continued => State::Tail {
                remaining: header.remaining as usize,
            },
            State::Lost => {
                d.end = page;
                State::Boundary
            }
            State::Boundary | State::Switched if header.continued => {
                return Err(Error::page(page, "the rest of a record that was never begun"));
            }
            State::Boundary | State::Switched => State::Boundary,
        };
        d.timeline = header.timeline;
        d.next = Lsn(page.0 + header.len() as u64);
        Ok(())
    }
}
