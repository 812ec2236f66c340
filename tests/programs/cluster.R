# Workers that are reached over sockets.
library(parallel)
cluster <- makePSOCKcluster(2)
work <- function(n) { x <- 0; for (i in seq_len(20000)) x <- (x * 31 + i * n) %% 1000003; x }
for (round in 1:12) cat(round, unlist(clusterApplyLB(cluster, round * 100 + 1:8, work)), "\n")
stopCluster(cluster)
