//! A Kafka-compatible broker.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::ops::Deref;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::daemon::{Daemon, Recipe, Shared};
use crate::supervisor::Supervisor;
use crate::{Port, install, process, shared};

/// The broker `tansu` on 127.0.0.1. It keeps everything in memory, so a restart loses all topics, and it does not hide
/// aborted transactions.
#[derive(Debug)]
pub struct Kafka {
    daemon: Daemon,
}

impl Deref for Kafka {
    type Target = Daemon;

    fn deref(&self) -> &Daemon {
        &self.daemon
    }
}

impl Kafka {
    /// A private one; dropping it ends it.
    ///
    /// # Panics
    /// If it is not installed or does not start.
    #[track_caller]
    pub fn start() -> Self {
        Self::try_start().unwrap_or_else(|e| panic!("cannot start the Kafka broker: {e:#}"))
    }

    /// The one the whole test run shares; use topics and groups of your own.
    ///
    /// # Panics
    /// If it is not installed or does not start.
    #[track_caller]
    pub fn shared() -> &'static Self {
        static RUNNING: Shared<Kafka> = Shared::new();
        let attach = |url: &str| Self {
            daemon: Daemon::attach("kafka", url),
        };
        shared::instance(&RUNNING, "kafka", attach, Self::start)
    }

    fn try_start() -> Result<Self> {
        let port = Port::free();
        let number = port.number();
        let supervisor = Supervisor::new("kafka", None, "KILL")?;
        let address = format!("tcp://127.0.0.1:{number}");
        let arguments = [
            "broker",
            "--listener-url",
            &address,
            "--advertised-listener-url",
            &address,
            "--storage-engine",
            "memory://tansu/",
        ];
        let recipe = Recipe {
            program: install::cached("tansu")?,
            arguments: arguments.map(String::from).into(),
            stop: "TERM",
            limit: Duration::from_secs(30),
            ready: Box::new(move |_| metadata(number, &[]).is_ok()),
        };
        Ok(Self {
            daemon: Daemon::start("kafka", supervisor, vec![port], recipe)?,
        })
    }

    /// What clients call the bootstrap server.
    pub fn bootstrap(&self) -> String {
        format!("127.0.0.1:{}", self.port())
    }

    /// Creates a topic.
    ///
    /// # Panics
    /// If the broker refuses.
    #[track_caller]
    pub fn create_topic(&self, name: &str, partitions: u32) {
        self.topic(&["create", name, "--partitions", &partitions.to_string()])
            .unwrap_or_else(|e| panic!("cannot create the topic {name}: {e:#}"));
    }

    /// How many partitions a topic has, as the broker's metadata say. Asking for a topic creates it, as clients know.
    ///
    /// # Panics
    /// If the broker does not answer, or with an error.
    #[track_caller]
    pub fn partitions(&self, topic: &str) -> u32 {
        metadata(self.port(), &[topic]).unwrap_or_else(|e| panic!("metadata of {topic}: {e}"))
    }

    fn topic(&self, arguments: &[&str]) -> Result<String> {
        let mut tansu = Command::new(install::cached("tansu")?);
        tansu
            .arg("topic")
            .args(arguments)
            .arg("--broker")
            .arg(format!("tcp://{}", self.bootstrap()));
        process::output(&mut tansu)
    }
}

/// Asks for metadata (version 1) of at most one topic; returns the number of its partitions.
fn metadata(port: u16, topics: &[&str]) -> io::Result<u32> {
    let mut request = Vec::new();
    // Metadata is request 3; then the version, a number for the answer to repeat, and the client's name.
    for word in [3_i16, 1] {
        request.extend(word.to_be_bytes());
    }
    request.extend(7_i32.to_be_bytes());
    let text = |text: &str, out: &mut Vec<u8>| {
        out.extend(u16::try_from(text.len()).unwrap_or_default().to_be_bytes());
        out.extend(text.as_bytes());
    };
    text("testkit", &mut request);
    request.extend(u32::try_from(topics.len()).unwrap_or_default().to_be_bytes());
    topics.iter().for_each(|topic| text(topic, &mut request));

    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(&u32::try_from(request.len()).unwrap_or_default().to_be_bytes())?;
    stream.write_all(&request)?;
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut answer)?;

    let mut answer = Answer(&answer);
    if answer.u32()? != 7 {
        return Err(io::Error::other("the answer to another request"));
    }
    for _broker in 0..answer.u32()? {
        answer.u32()?;
        answer.text()?;
        answer.u32()?;
        answer.text()?;
    }
    answer.u32()?;
    if answer.u32()? == 0 {
        return Ok(0);
    }
    let error = answer.u16()?;
    let _name = answer.text()?;
    let _internal = answer.take(1)?;
    let partitions = answer.u32()?;
    if error != 0 {
        return Err(io::Error::other(format!("error {error}")));
    }
    Ok(partitions)
}

/// Reads an answer piece by piece.
struct Answer<'a>(&'a [u8]);

impl<'a> Answer<'a> {
    fn take(&mut self, count: usize) -> io::Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(io::ErrorKind::UnexpectedEof)?;
        self.0 = rest;
        Ok(taken)
    }

    fn u16(&mut self) -> io::Result<u16> {
        Ok(u16::from_be_bytes(self.take(2)?.try_into().map_err(io::Error::other)?))
    }

    fn u32(&mut self) -> io::Result<u32> {
        Ok(u32::from_be_bytes(self.take(4)?.try_into().map_err(io::Error::other)?))
    }

    /// A length of -1 means no text.
    fn text(&mut self) -> io::Result<&'a [u8]> {
        match self.u16()? {
            u16::MAX => Ok(&[]),
            length => self.take(length.into()),
        }
    }
}
