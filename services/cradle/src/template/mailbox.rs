//! The pages of a template where its guests find their orders ([`zone::template`]).

use crate::memory::Mem;
use anyhow::{Context, Result, ensure};
use vm_memory::{Bytes as _, GuestAddress};
use zone::template::{MARK, MAX_SPEC, Orders, PAGE, PAGES, SEED, mark};

/// Finds the pages while the memory is looked through; each must be there once.
#[derive(Default)]
pub struct Search {
    found: Vec<(u32, u64)>,
}

impl Search {
    /// Looks at the page at `address`.
    pub fn look(&mut self, address: u64, page: &[u8]) {
        let start = page.get(..MARK).unwrap_or_default();
        if let Some(number) = (0..PAGES as u32).find(|number| mark(*number) == start) {
            self.found.push((number, address));
        }
    }

    /// Where they are, in order.
    ///
    /// # Errors
    /// When one is missing, or there twice.
    pub fn end(mut self) -> Result<Vec<u64>> {
        self.found.sort_unstable();
        let numbers = self.found.iter().map(|(number, _)| *number);
        ensure!(numbers.eq(0..PAGES as u32), "the guest's agent has not marked its pages once each");
        Ok(self.found.into_iter().map(|(_, address)| address).collect())
    }
}

/// Writes the orders of a guest with this spec and so many devices.
///
/// # Errors
/// When the spec is too long, or the host gives no random bytes.
pub fn fill(mem: &Mem, pages: &[u64], spec: Vec<u8>, devices: usize) -> Result<()> {
    ensure!(spec.len() <= MAX_SPEC, "the guest's specification is too long for a template");
    let mut seed = [0; SEED];
    let got = rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty());
    ensure!(got.context("cannot get random bytes")? == SEED, "cannot get random bytes");
    let devices = u8::try_from(devices).context("there are too many devices")?;
    let orders = Orders { now_ns: zone::time::now_ns(), seed, devices, spec }.encode();
    for (bytes, page) in orders.chunks(PAGE).zip(pages) {
        mem.write_slice(bytes, GuestAddress(*page)).context("cannot write the guest's orders")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_found_where_the_marks_were_in_their_order() {
        let mem = crate::memory::create(32 << 20, false).unwrap();
        let mut search = Search::default();
        // Far from each other, and backwards.
        let place = |number: usize| ((PAGES - number) * 5 * PAGE) as u64;
        for number in 0..PAGES {
            mem.write_slice(&mark(number as u32), GuestAddress(place(number))).unwrap();
            let mut page = [0; PAGE];
            mem.read_slice(&mut page, GuestAddress(place(number))).unwrap();
            search.look(place(number), &page);
        }
        let pages = search.end().unwrap();
        let spec = vec![b'x'; PAGE * 2];
        fill(&mem, &pages, spec.clone(), 3).unwrap();
        let mut bytes = Vec::new();
        for page in &pages {
            let mut content = [0; PAGE];
            mem.read_slice(&mut content, GuestAddress(*page)).unwrap();
            bytes.extend(content);
        }
        let orders = Orders::decode(&bytes).unwrap();
        assert_eq!((orders.devices, orders.spec), (3, spec));
        assert!(fill(&mem, &pages, vec![0; MAX_SPEC + 1], 0).is_err());
    }

    #[test]
    fn a_page_that_is_there_twice_or_not_at_all_is_an_error() {
        assert!(Search::default().end().is_err());
        let mut search = Search::default();
        for number in (0..PAGES as u32).chain([3]) {
            search.look(u64::from(number), &mark(number));
        }
        assert!(search.end().is_err());
    }
}
