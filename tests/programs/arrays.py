"""Linear algebra with numpy, in as many threads as its library likes."""
import numpy as np

rng = np.random.default_rng(5)
a = rng.standard_normal((700, 700))
b = np.eye(700)
mapped = np.memmap("mapped.dat", dtype=np.float64, mode="w+", shape=(100, 700))
for step in range(25):
    b = np.tanh(a @ b / 26.0) + 0.01 * rng.standard_normal((700, 700))
    mapped[step % 100] = b[step]
    if step % 5 == 4:
        u = np.linalg.qr(b[:300, :300])[1]
        print(step, f"{np.trace(b):.9e} {abs(u).sum():.9e}", flush=True)
mapped.flush()
np.save("result.npy", np.round(b, 6))
print("done", f"{b.sum():.9e}")
