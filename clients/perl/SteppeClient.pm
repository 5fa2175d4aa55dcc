# A client of a steppe policy server for Perl 5.14 and newer, in one file, written from docs/protocol.md alone. Perl
# itself has all that it needs; over https, IO::Socket::SSL.
#
#     my $client = SteppeClient->new("http://127.0.0.1:9900", token => $ENV{STEPPE_TOKEN});
#     my $id     = $client->ask(start => {})->{episode_id};
#     my $action = $client->ask(act => {episode_id => $id, obs => [0.1, -0.2]})->{action};
#     $client->ask(log_returns => {episode_id => $id, reward => 1.0});
#     $client->ask(end => {episode_id => $id, obs => [0.3, -0.1]});
#
# `ask` takes a verb that changes something and its fields, and returns the answer. It dies with a hash of `status`,
# `code`, `message` and `request_id`; a status of 0 says that no answer came in `timeout` seconds.
package SteppeClient;

use strict;
use warnings;
use HTTP::Tiny;
use JSON::PP ();
use Time::HiRes qw(sleep time);

my $json  = JSON::PP->new->utf8->allow_nonref;
my %later = map { $_ => 1 } 429, 502, 503, 504, 599;    # 599 is HTTP::Tiny's own: no answer

sub new {
    my ($class, $address, %options) = @_;
    open my $random, '<:raw', '/dev/urandom' or die "no random numbers: $!";
    read $random, my $bytes, 8;
    my %head = ('Content-Type' => 'application/json', 'Steppe-Protocol' => 1);
    $head{Authorization} = "Bearer $options{token}" if defined $options{token};
    my %tls  = defined $options{ca} ? (verify_SSL => 1, SSL_options => {SSL_ca_file => $options{ca}}) : (verify_SSL => 1);
    my $wait = $options{timeout} // 30;
    my $http = HTTP::Tiny->new(keep_alive => 1, timeout => $wait / 3, default_headers => \%head, %tls);
    my %self = (name => unpack('H*', $bytes), seq => 0, address => $address =~ s{/+$}{}r, http => $http, wait => $wait);
    return bless \%self, $class;
}

sub ask {
    my ($self, $verb, $fields) = @_;
    my %sent  = (%$fields, client => $self->{name}, epoch => 0, seq => ++$self->{seq});
    my $until = time + $self->{wait};

    # Sent again under the same number until there is an answer: the server carries it out once.
    for (my $pause = 0.05; ; $pause = $pause < 1 ? 2 * $pause : 2) {
        my $answer = $self->{http}->post("$self->{address}/v1/$verb", {content => $json->encode(\%sent)});
        my $told   = eval { $json->decode($answer->{content}) };
        return $told if $answer->{status} == 200 && ref $told eq 'HASH';
        my $wait = $answer->{headers}{'retry-after'} // $pause;
        if (!$later{$answer->{status}} || time + $wait > $until) {
            $told = {code => 'unreachable', message => $answer->{content}} if ref $told ne 'HASH';
            die {%$told, status => $answer->{status} == 599 ? 0 : $answer->{status}};
        }
        sleep $wait;
    }
}

1;
