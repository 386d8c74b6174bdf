#!/usr/bin/perl
# Counts the words of a text. It reads each call as a line of NAME='value' pairs, which Perl splits without a library.
use strict;
use warnings;

open(my $calls,   '<&=', 3) or die "fd 3: $!\n";
open(my $answers, '>&=', 4) or die "fd 4: $!\n";
$answers->autoflush(1);
my $count = 0;    # in place of a model: it stays in memory

sub count_words {
    my (%env) = @_;
    open(my $input, '<', $env{INPUT_FILE_PATH}) or die "$env{INPUT_FILE_PATH}: $!\n";
    my $words = 0;
    $words += () = /\S+/g while <$input>;
    die "the text has no words\n" unless $words;
    $count++;
    open(my $output, '>', "$env{TMP_OUTPUT_DIR}/words.txt") or die "words.txt: $!\n";
    print $output "$words words, call $count of this worker\n";
    close($output) or die "words.txt: $!\n";
}

print $answers "ready sh\n";
while (my $call = <$calls>) {
    my %env;
    while ($call =~ /\G ?(\w+)='([^']*(?:'\\''[^']*)*)'/g) {    # a quote inside a value is '\''
        ($env{$1} = $2) =~ s/'\\''/'/g;
    }
    my $code = eval { count_words(%env); 1 } ? 0 : 1;
    print STDERR $@ if $code;
    print $answers "done $code\n";
}
