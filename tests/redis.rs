//! Rows in a Redis Cluster that this test starts: the contract of stores, jobs, failover, versions, and what is said of faults.
