//! libmesh from outside: real sockets on loopback, a certificate authority made by the test.

mod api;
mod ca;
mod cluster;
mod connect;
mod corpus;
mod identity;
mod member;
mod mesh;
mod refused;
mod rpc;
mod subscribe;
