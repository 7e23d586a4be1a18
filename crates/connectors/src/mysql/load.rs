//! Rows into load tables: by LOAD DATA LOCAL INFILE, or by INSERT of many rows at once.
//!
//! LOAD DATA LOCAL only warns where INSERT refuses, and skips rows whose key is there; so a warning is a failure, and the
//! number of rows stored must be the number sent.

use super::LoadPath;
use super::client::{Flavor, Session};
use super::sql::{ident, list, table as quoted};
use super::types::Writer;
use arrow_array::RecordBatch;
use synctool_core::error::{Error, Result, code};
use synctool_core::schema::TableId;

/// Rows are sent when they have so many bytes.
const FLUSH_BYTES: usize = 4 << 20;

/// Where rows of one planned table are loaded.
#[derive(Debug)]
pub(super) struct LoadTarget {
    /// The destination table, as events name it.
    pub(super) table: TableId,
    load: TableId,
    columns: Vec<String>,
    writers: Vec<Writer>,
    infile: bool,
    most: usize,
    buffer: Vec<u8>,
    rows: u64,
}

impl LoadTarget {
    pub(super) fn new(
        table: TableId,
        load: TableId,
        columns: Vec<String>,
        writers: Vec<Writer>,
        path: LoadPath,
        flavor: &Flavor,
    ) -> Self {
        LoadTarget {
            table,
            load,
            columns,
            writers,
            infile: match path {
                LoadPath::Auto => flavor.local_infile,
                LoadPath::Infile => true,
                LoadPath::Insert => false,
            },
            most: FLUSH_BYTES.min(flavor.max_packet / 2),
            buffer: Vec::new(),
            rows: 0,
        }
    }

    /// Takes rows; sends them where they are many.
    pub(super) async fn take(&mut self, session: &mut Session, rows: &RecordBatch) -> Result<()> {
        let places: Vec<usize> = self
            .columns
            .iter()
            .map(|name| {
                rows.schema_ref().index_of(name).map_err(|_| {
                    Error::new(
                        code::COLUMN_MISSING,
                        format!("a batch lacks column {name}, which the plan writes"),
                    )
                })
            })
            .collect::<Result<_>>()?;
        for row in 0..rows.num_rows() {
            if self.infile {
                self.line(rows, &places, row)?;
            } else {
                self.tuple(rows, &places, row)?;
            }
            self.rows += 1;
            if self.buffer.len() >= self.most {
                self.flush(session).await?;
            }
        }
        Ok(())
    }

    fn line(&mut self, rows: &RecordBatch, places: &[usize], row: usize) -> Result<()> {
        let mut cell = Vec::new();
        for (i, (writer, place)) in self.writers.iter().zip(places).enumerate() {
            if i > 0 {
                self.buffer.push(b'\t');
            }
            cell.clear();
            if !writer.write(rows.column(*place).as_ref(), row, &mut cell)? {
                self.buffer.extend_from_slice(b"\\N");
                continue;
            }
            for byte in &cell {
                match byte {
                    b'\\' | b'\t' => self.buffer.extend_from_slice(&[b'\\', *byte]),
                    b'\n' => self.buffer.extend_from_slice(b"\\n"),
                    0 => self.buffer.extend_from_slice(b"\\0"),
                    b => self.buffer.push(*b),
                }
            }
        }
        self.buffer.push(b'\n');
        Ok(())
    }

    fn tuple(&mut self, rows: &RecordBatch, places: &[usize], row: usize) -> Result<()> {
        self.buffer
            .extend_from_slice(if self.rows == 0 { b"(" } else { b", (" });
        for (i, (writer, place)) in self.writers.iter().zip(places).enumerate() {
            if i > 0 {
                self.buffer.extend_from_slice(b", ");
            }
            let literal = writer.literal(rows.column(*place).as_ref(), row)?;
            self.buffer.extend_from_slice(literal.as_bytes());
        }
        self.buffer.push(b')');
        Ok(())
    }

    /// Sends what was gathered.
    pub(super) async fn flush(&mut self, session: &mut Session) -> Result<()> {
        if self.rows == 0 {
            return Ok(());
        }
        let (sent, data) = (std::mem::take(&mut self.rows), std::mem::take(&mut self.buffer));
        let what = format!("loading rows of {}", self.table);
        let stored = if self.infile {
            session.load(&self.statement(), data.into(), &what).await?
        } else {
            let mut sql = format!(
                "INSERT INTO {} ({}) VALUES ",
                quoted(&self.load),
                list("", &self.columns)
            );
            // Every literal is text, or bytes in hexadecimal.
            sql.push_str(std::str::from_utf8(&data).map_err(|_| Error::bug("a literal that is not UTF-8"))?);
            session.run(&sql, &what).await?
        };
        if stored == sent {
            return Ok(());
        }
        Err(Error::new(
            code::DUPLICATE_KEY,
            format!("the server stored {stored} of {sent} rows: others with their keys are there"),
        )
        .at("table", self.table.to_string())
        .hint_of_doubles())
    }

    /// The file's bytes are ours: as binary they are stored as they are, whatever the column.
    fn statement(&self) -> String {
        let mut columns = Vec::new();
        let mut set = Vec::new();
        for (i, (name, writer)) in self.columns.iter().zip(&self.writers).enumerate() {
            let variable = format!("@synctool_{i}");
            let stored = writer.stored(&variable);
            if stored == variable {
                columns.push(ident(name));
            } else {
                set.push(format!("{} = {stored}", ident(name)));
                columns.push(variable);
            }
        }
        let set = if set.is_empty() {
            String::new()
        } else {
            format!(" SET {}", set.join(", "))
        };
        format!(
            "LOAD DATA LOCAL INFILE 'synctool' INTO TABLE {} CHARACTER SET binary \
             FIELDS TERMINATED BY '\\t' ESCAPED BY '\\\\' LINES TERMINATED BY '\\n' ({}){set}",
            quoted(&self.load),
            columns.join(", ")
        )
    }
}
