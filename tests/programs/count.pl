# Hashes, sorting, regular expressions, a pipe to a child, alarms.
use strict;
use warnings;
$| = 1;
my $alarms = 0;
$SIG{ALRM} = sub { $alarms++; };
open(my $child, '-|', 'i=0; while [ $i -lt 80 ]; do i=$((i+1)); echo "child $i"; sleep 0.05; done') or die;
my %seen;
my ($x, $sum) = (12345, 0);
open(my $out, '>', 'table.txt') or die;
for my $step (1 .. 80) {
    for (1 .. 60000) {
        $x = ($x * 1103515245 + 12345) % 2147483648;
        $seen{ $x % 5003 } .= chr(97 + $x % 26) if $x % 3 == 0;
    }
    my $line = <$child>;
    chomp $line;
    my @keys = sort { $a <=> $b } keys %seen;
    my $matches = grep { ($seen{$_} // '') =~ /a.*b.{2}c/ } @keys;
    $sum = ($sum * 17 + $matches) % 1000003;
    print $out "$step $line $matches $sum\n";
    print "$step $line $sum\n" if $step % 4 == 0;
}
close($child);
close($out);
print "sum $sum alarms $alarms\n";
