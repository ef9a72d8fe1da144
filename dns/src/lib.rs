//! DNS front end of the mesh.
//!
//! Answers `web.service.mesh` and its relatives from the catalog of a [`libmesh`] node and passes foreign names on
//! to configured resolvers. It reads the catalog and writes nothing.

pub mod wire;
