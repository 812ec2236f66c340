import java.net.*;
import java.nio.*;
import java.nio.channels.*;
import java.util.*;

/** A server with a selector, and clients that check what it answers. */
class Channels {
    public static void main(String[] arguments) throws Exception {
        int rounds = Integer.parseInt(arguments[0]), clients = 8;
        ServerSocketChannel listening = ServerSocketChannel.open().bind(new InetSocketAddress("127.0.0.1", 0));
        listening.configureBlocking(false);
        Thread server = new Thread(() -> {
            try { serve(listening, clients); } catch (Exception failure) { failure.printStackTrace(); System.exit(1); }
        });
        server.start();
        long[] sums = new long[clients];
        Thread[] threads = new Thread[clients];
        for (int n = 0; n < clients; n++) {
            int number = n;
            threads[n] = new Thread(() -> {
                try { sums[number] = ask(listening, number, rounds); } catch (Exception failure) { failure.printStackTrace(); System.exit(1); }
            });
            threads[n].start();
        }
        for (Thread thread : threads) thread.join();
        server.join();
        System.out.println(Arrays.toString(sums));
    }

    static long ask(ServerSocketChannel listening, int number, int rounds) throws Exception {
        long sum = 0;
        try (SocketChannel channel = SocketChannel.open(listening.getLocalAddress())) {
            ByteBuffer buffer = ByteBuffer.allocate(8);
            for (int round = 0; round < rounds; round++) {
                buffer.clear().putLong(0, (long) round * 1000003 + number);
                while (buffer.hasRemaining()) channel.write(buffer);
                buffer.clear();
                while (buffer.hasRemaining()) if (channel.read(buffer) < 0) throw new Exception("the server has gone");
                if (buffer.getLong(0) != ((long) round * 1000003 + number) * 3) throw new Exception("a wrong answer");
                sum += buffer.getLong(0);
            }
        }
        return sum;
    }

    static void serve(ServerSocketChannel listening, int clients) throws Exception {
        Selector selector = Selector.open();
        listening.register(selector, SelectionKey.OP_ACCEPT);
        int ended = 0;
        while (ended < clients) {
            selector.select();
            for (Iterator<SelectionKey> keys = selector.selectedKeys().iterator(); keys.hasNext(); keys.remove()) {
                SelectionKey key = keys.next();
                if (key.isValid() && keyOf(key, listening, selector)) ended++;
            }
        }
        listening.close();
    }

    static boolean keyOf(SelectionKey key, ServerSocketChannel listening, Selector selector) throws Exception {
        if (key.isAcceptable()) {
            SocketChannel channel = listening.accept();
            if (channel == null) return false;
            channel.configureBlocking(false);
            channel.register(selector, SelectionKey.OP_READ, ByteBuffer.allocate(8));
            return false;
        }
        SocketChannel channel = (SocketChannel) key.channel();
        ByteBuffer buffer = (ByteBuffer) key.attachment();
        if (channel.read(buffer) < 0) { channel.close(); return true; }
        if (!buffer.hasRemaining()) {
            buffer.putLong(0, buffer.getLong(0) * 3).rewind();
            while (buffer.hasRemaining()) channel.write(buffer);
            buffer.clear();
        }
        return false;
    }
}
