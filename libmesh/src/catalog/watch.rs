//! Waiting for one service to change.

use std::fmt;
use std::pin::pin;
use std::sync::Arc;

use super::Catalog;
use super::index::ServiceCell;
use super::view::ServiceView;
use crate::model::ServiceName;

/// A waiter on one service. Changes of other services do not wake it; the service need not exist (yet).
pub struct ServiceWatch {
    catalog: Catalog,
    cell: Arc<ServiceCell>,
    name: ServiceName,
}

impl ServiceWatch {
    pub(super) fn new(catalog: &Catalog, name: &ServiceName) -> Self {
        Self {
            catalog: catalog.clone(),
            cell: catalog.inner.index.service_or_new(name),
            name: name.clone(),
        }
    }

    /// The service's name.
    pub fn name(&self) -> &ServiceName {
        &self.name
    }

    /// The service's revision now; kept after its last instance is gone, 0 when it never had one.
    pub fn revision(&self) -> u64 {
        self.cell.revision()
    }

    /// The service now; `None` while no node that is present has an instance.
    pub fn view(&self) -> Option<Arc<ServiceView>> {
        self.catalog.view(&self.cell, self.name.as_str())
    }

    /// Waits until the service's revision is greater than `revision` and returns it; at once when it is already.
    /// Cancel-safe: dropping the future loses nothing.
    pub async fn changed_after(&self, revision: u64) -> u64 {
        loop {
            let mut changed = pin!(self.cell.changed().notified());
            // Registered before looking, so that a change between the look and the wait still wakes.
            changed.as_mut().enable();
            let now = self.cell.revision();
            if now > revision {
                return now;
            }
            changed.await;
        }
    }
}

impl Drop for ServiceWatch {
    fn drop(&mut self) {
        self.catalog.inner.index.release(&self.name, &self.cell);
    }
}

impl fmt::Debug for ServiceWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceWatch")
            .field("service", &self.name)
            .field("revision", &self.revision())
            .finish()
    }
}
