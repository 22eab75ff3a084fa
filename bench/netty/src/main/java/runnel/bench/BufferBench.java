package runnel.bench;

import io.netty.buffer.AdaptiveByteBufAllocator;
import io.netty.buffer.ByteBuf;
import io.netty.buffer.ByteBufAllocator;
import io.netty.buffer.PooledByteBufAllocator;
import io.netty.util.concurrent.DefaultThreadFactory;
import io.netty.util.concurrent.FastThreadLocalThread;
import java.util.Random;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.ThreadPoolExecutor;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.atomic.AtomicReferenceArray;
import org.openjdk.jmh.annotations.Benchmark;
import org.openjdk.jmh.annotations.BenchmarkMode;
import org.openjdk.jmh.annotations.Fork;
import org.openjdk.jmh.annotations.Level;
import org.openjdk.jmh.annotations.Measurement;
import org.openjdk.jmh.annotations.Mode;
import org.openjdk.jmh.annotations.OperationsPerInvocation;
import org.openjdk.jmh.annotations.OutputTimeUnit;
import org.openjdk.jmh.annotations.Param;
import org.openjdk.jmh.annotations.Scope;
import org.openjdk.jmh.annotations.Setup;
import org.openjdk.jmh.annotations.State;
import org.openjdk.jmh.annotations.TearDown;
import org.openjdk.jmh.annotations.Warmup;
import org.openjdk.jmh.infra.Blackhole;

/**
 * What the command buffers measures of Runnel, for direct buffers of Netty's pooled
 * and adaptive allocators. The leak detector is off, and all work is done on threads
 * that have Netty's thread-local caches, as its event loops do.
 */
@BenchmarkMode(Mode.AverageTime)
@OutputTimeUnit(TimeUnit.NANOSECONDS)
@Warmup(iterations = 3, time = 300, timeUnit = TimeUnit.MILLISECONDS)
@Measurement(iterations = 6, time = 300, timeUnit = TimeUnit.MILLISECONDS)
@Fork(value = 1, jvmArgsAppend = {
    "-Djmh.executor=CUSTOM",
    "-Djmh.executor.class=runnel.bench.BufferBench$Threads",
    "-Dio.netty.leakDetection.level=disabled",
})
public class BufferBench {
    private static final int BATCH = 256;
    private static final int RING = 1024;
    private static final int REMOTE_SIZE = 1024;
    private static final int FRAMES = 64;
    private static final int FRAME_SIZE = 1024;
    private static final int ACCESS_SIZE = 4096;
    private static final int ACCESSES = ACCESS_SIZE / 4;

    /** JMH's threads, of the kind that Netty's event loops are. */
    public static final class Threads extends ThreadPoolExecutor {
        public Threads(int max, String prefix) {
            super(max, max, 0, TimeUnit.SECONDS, new LinkedBlockingQueue<>(), new DefaultThreadFactory(prefix, true));
        }
    }

    @State(Scope.Thread)
    public static class Allocator {
        @Param({"pooled", "adaptive"})
        public String allocator;

        ByteBufAllocator alloc;

        @Setup(Level.Trial)
        public void setup() {
            if (!FastThreadLocalThread.currentThreadWillCleanupFastThreadLocals()) {
                throw new IllegalStateException("this thread would have no cache");
            }
            alloc = allocator.equals("pooled") ? new PooledByteBufAllocator(true) : new AdaptiveByteBufAllocator(true);
        }
    }

    @State(Scope.Thread)
    public static class Size {
        @Param({"64", "1024", "16384", "65536"})
        public int size;
    }

    /** Two buffers full of zeros, and where to read in the second. */
    @State(Scope.Thread)
    public static class Content {
        ByteBuf frames;
        ByteBuf ints;
        int[] at = new int[ACCESSES];

        @Setup(Level.Trial)
        public void setup(Allocator a) {
            frames = a.alloc.directBuffer(FRAMES * FRAME_SIZE).writeZero(FRAMES * FRAME_SIZE);
            ints = a.alloc.directBuffer(ACCESS_SIZE).writeZero(ACCESS_SIZE);
            Random random = new Random(1);
            for (int i = 0; i < at.length; i++) {
                at[i] = random.nextInt(ACCESS_SIZE - 3);
            }
        }

        @TearDown(Level.Trial)
        public void tearDown() {
            frames.release();
            ints.release();
        }
    }

    /** Another thread, which releases what comes through the ring. */
    @State(Scope.Thread)
    public static class Releaser {
        // Apart from each other, so that the two threads do not share a cache line.
        final AtomicReferenceArray<ByteBuf> ring = new AtomicReferenceArray<>(RING);
        final AtomicLong[] counters = new AtomicLong[64];
        AtomicLong pushed;
        AtomicLong popped;
        AtomicLong opened; // up to here it may release
        volatile boolean ended;
        private Thread thread;

        @Setup(Level.Trial)
        public void setup() {
            for (int i = 0; i < counters.length; i++) {
                counters[i] = new AtomicLong();
            }
            pushed = counters[0];
            popped = counters[31];
            opened = counters[63];
            thread = new DefaultThreadFactory("releaser", true).newThread(this::releaseAll);
            thread.start();
        }

        @TearDown(Level.Trial)
        public void tearDown() throws InterruptedException {
            ended = true;
            thread.join();
        }

        private void releaseAll() {
            long n = 0;
            while (true) {
                long limit = opened.getAcquire();
                if (limit == n) {
                    if (ended) {
                        return;
                    }
                    Thread.onSpinWait();
                    continue;
                }
                for (; n < limit; n++) {
                    ring.getPlain((int) (n % RING)).release();
                    popped.setRelease(n + 1);
                }
            }
        }

        void push(ByteBuf b) {
            long n = pushed.getPlain();
            while (n - popped.getAcquire() == RING) {
                Thread.onSpinWait();
            }
            ring.setPlain((int) (n % RING), b);
            pushed.setPlain(n + 1);
        }

        void open() {
            opened.setRelease(pushed.getPlain());
        }

        void await() {
            long n = pushed.getPlain();
            while (popped.getAcquire() != n) {
                Thread.onSpinWait();
            }
        }
    }

    @Benchmark
    public int owner(Allocator a, Size s) {
        ByteBuf b = a.alloc.directBuffer(s.size);
        b.writeByte(1);
        int n = b.readableBytes();
        b.release();
        return n;
    }

    @Benchmark
    @OperationsPerInvocation(RING * 4)
    public void remoteSingle(Allocator a, Releaser r) {
        for (int i = 0; i < RING * 4; i++) {
            r.push(a.alloc.directBuffer(REMOTE_SIZE).writeByte(i));
            r.open();
        }
        r.await();
    }

    @Benchmark
    @OperationsPerInvocation(BATCH)
    public void remoteBatch(Allocator a, Releaser r) {
        for (int i = 0; i < BATCH; i++) {
            r.push(a.alloc.directBuffer(REMOTE_SIZE).writeByte(i));
        }
        r.open();
        r.await();
    }

    @Benchmark
    @OperationsPerInvocation(FRAMES)
    public void slice(Allocator a, Content c, Blackhole hole) {
        for (int i = 0; i < FRAMES; i++) {
            ByteBuf s = c.frames.readRetainedSlice(FRAME_SIZE);
            hole.consume(s.readableBytes());
            s.release();
        }
        c.frames.readerIndex(0);
    }

    @Benchmark
    @OperationsPerInvocation(ACCESSES)
    public int readInt(Allocator a, Content c) {
        int sum = 0;
        for (int i = 0; i < ACCESSES; i++) {
            sum += c.ints.readInt();
        }
        c.ints.readerIndex(0);
        return sum;
    }

    @Benchmark
    @OperationsPerInvocation(ACCESSES)
    public int writeInt(Allocator a, Content c) {
        c.ints.clear();
        for (int i = 0; i < ACCESSES; i++) {
            c.ints.writeInt(i);
        }
        return c.ints.readableBytes();
    }

    @Benchmark
    @OperationsPerInvocation(ACCESSES)
    public int getInt(Allocator a, Content c) {
        int sum = 0;
        for (int i : c.at) {
            sum += c.ints.getInt(i);
        }
        return sum;
    }
}
