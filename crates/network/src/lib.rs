//! The Pod network: bridge, IPAM, nftables, host ports.
