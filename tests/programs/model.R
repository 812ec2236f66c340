set.seed(11)
out <- file("fits.txt", "w")
total <- 0
for (step in 1:110) {
  n <- 3000
  x <- matrix(rnorm(n * 12), n)
  y <- x %*% (1:12) + rnorm(n)
  fit <- lm.fit(cbind(1, x), y)
  s <- svd(crossprod(x))$d
  words <- paste(sample(letters, 200, TRUE), collapse = "")
  total <- total + sum(fit$coefficients) + sum(log(s))
  writeLines(sprintf("%d %.8f %s", step, total, substr(words, 1, 12)), out)
  Sys.sleep(0.03)
  if (step %% 6 == 0) cat(step, sprintf("%.8f", total), "\n")
}
close(out)
cat("total", sprintf("%.8f", total), "\n")
