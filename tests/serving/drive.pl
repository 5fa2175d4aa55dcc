# Carries out calls that it reads, a line of JSON each, with the Perl client, and prints what came of them. A line with
# an address and options makes another client.
use strict;
use warnings;
use FindBin;
use lib "$FindBin::Bin/../../clients/perl";
use JSON::PP ();
use SteppeClient;

my $json  = JSON::PP->new->utf8->allow_nonref;
my %verbs = (start_episode => 'start', get_action => 'act', end_episode => 'end');
my ($main, $first);
$| = 1;

sub client {
    my %options = (%{$first->{options}}, %{$_[0]});
    return SteppeClient->new($first->{address}, %options);
}

sub result {
    my ($client, $call, $with) = @_;
    if ($call eq 'get_actions') {
        my @ids  = keys %{$with->{obs}};
        my @acts = map { {episode_id => $_, obs => $with->{obs}{$_}} } @ids;
        my $told = $client->ask(act_many => {acts => \@acts})->{actions};
        return {map { $ids[$_] => $told->[$_] } 0 .. $#ids};
    }
    my $told = $client->ask($verbs{$call} // $call, $with);
    return $told->{episode_id} if $call eq 'start_episode';
    return $with->{full} ? $told : $told->{action} if $call eq 'get_action';
    return undef;
}

while (my $line = <STDIN>) {
    my $command = $json->decode($line);
    if ($command->{address}) {
        $first = $command;
        $main  = client({});
        next;
    }
    my $client = $command->{client} ? client($command->{client}) : $main;
    my $gives  = eval { result($client, $command->{call}, $command->{with}) };
    print $json->encode($@ ? {raises => ref $@ ? $@ : {message => "$@"}} : {gives => $gives}), "\n";
}
