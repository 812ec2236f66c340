import java.io.FileWriter;
import java.util.ArrayList;
import java.util.List;
import java.util.TreeMap;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CyclicBarrier;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;

/** Threads, garbage, a barrier, an open file. */
public class Work {
    static long mix(long x) {
        x ^= x >>> 33;
        x *= 0xff51afd7ed558ccdL;
        x ^= x >>> 29;
        return x * 0xc4ceb9fe1a85ec53L;
    }

    public static void main(String[] arguments) throws Exception {
        int steps = Integer.parseInt(arguments[0]);
        int threads = 4;
        ExecutorService pool = Executors.newFixedThreadPool(threads);
        ConcurrentHashMap<Integer, Long> shared = new ConcurrentHashMap<>();
        long total = 0;
        try (FileWriter out = new FileWriter("java.txt")) {
            for (int step = 0; step < steps; step++) {
                final int now = step;
                CyclicBarrier barrier = new CyclicBarrier(threads);
                List<Future<Long>> results = new ArrayList<>();
                for (int t = 0; t < threads; t++) {
                    final int own = t;
                    results.add(pool.submit(() -> {
                        barrier.await();
                        long sum = 0;
                        TreeMap<Long, byte[]> garbage = new TreeMap<>();
                        for (int i = 0; i < 20000; i++) {
                            long x = mix(now * 1000003L + own * 7919L + i);
                            garbage.put(x % 5000, new byte[(int) (i % 200)]);
                            sum += x ^ garbage.firstKey();
                        }
                        shared.merge(own, sum, Long::sum);
                        Thread.sleep(3);
                        return sum + garbage.size();
                    }));
                }
                for (Future<Long> result : results) total = total * 31 + result.get();
                out.write(step + " " + total + "\n");
                if (step % 20 == 0) {
                    out.flush();
                    System.out.println(step + " " + Long.toHexString(total));
                }
            }
        }
        pool.shutdown();
        long all = 0;
        for (int t = 0; t < threads; t++) all ^= shared.get(t);
        System.out.println("total " + Long.toHexString(total) + " " + Long.toHexString(all));
    }
}
