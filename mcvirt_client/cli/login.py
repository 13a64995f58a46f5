"""Who is typing: the client for one command, with credentials from wherever they are."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from mcvirt.errors import BadArgument, NotAuthenticated
from mcvirt_client import discovery
from mcvirt_client.client import Client, log_in

if TYPE_CHECKING:
    import argparse

    from mcvirt_client.cli.output import Output
    from mcvirt_client.discovery import Endpoint


def endpoint_of(args: argparse.Namespace) -> Endpoint:
    """The daemon that the global flags name."""
    if args.host is None:
        return discovery.find(ca_file=args.ca_file)
    host, port = discovery.split_host(args.host)
    return discovery.find(host, port, ca_file=args.ca_file)


def connect(args: argparse.Namespace, out: Output) -> Client:
    """A client for what the global flags name. It logs in, or asks, with its first call."""
    endpoint = endpoint_of(args)
    token = None
    cached = False
    if args.username is None and not _password_given(args):
        token = discovery.read_root_token(endpoint)
        if token is None:
            from mcvirt_client.credentials import TokenCache

            token = TokenCache().get(endpoint.key)
            cached = token is not None
        elif not args.cache_credentials:
            return Client(endpoint, token=token)

    def renew() -> str:
        if cached:
            from mcvirt_client.credentials import TokenCache

            out.warn(f"The session kept in {TokenCache().path} for {endpoint.key} is no longer valid. Log in again.")
            TokenCache().drop(endpoint.key)
        return ask_and_log_in(args, out, endpoint, keep=args.cache_credentials, client=client)

    client = Client(endpoint, token=token, renew=renew)
    return client


def ask_and_log_in(
    args: argparse.Namespace, out: Output, endpoint: Endpoint, *, keep: bool, client: Client | None = None
) -> str:
    """The token of a new session; it is kept in the cache, or ends with *client*."""
    username = args.username or _ask_username(endpoint)
    token = log_in(endpoint, username, read_password(args, out, f"Password of {username} on {endpoint.key}: ")).token
    if keep:
        from mcvirt_client.credentials import TokenCache

        TokenCache().put(endpoint.key, token)
    elif client is not None:
        client.end_session_on_close()
    return token


def _password_given(args: argparse.Namespace) -> bool:
    return args.password is not None or args.password_file is not None


def _ask_username(endpoint: Endpoint) -> str:
    if not sys.stdin.isatty():
        raise NotAuthenticated(
            text=f"Log in to {endpoint.key} first: with `mcvirt login`, or with --username and --password-file."
        )
    sys.stderr.write("Username: ")
    sys.stderr.flush()
    name = sys.stdin.readline().strip()
    if not name:
        raise NotAuthenticated(text="No user name was given.")
    return name


def read_password(args: argparse.Namespace, out: Output, prompt: str) -> str:
    """The password from --password, --password-file, $MCVIRT_PASSWORD, or somebody at the terminal."""
    if args.password is not None:
        out.warn(
            "Warning: other users of this machine can see a password that is given with --password. "
            "--password-file and MCVIRT_PASSWORD are safer."
        )
        return str(args.password)
    if args.password_file is not None:
        return password_from_file(args.password_file)
    if "MCVIRT_PASSWORD" in os.environ:
        return os.environ["MCVIRT_PASSWORD"]
    return prompt_password(prompt)


def password_from_file(path: str) -> str:
    """The first line of the file *path*."""
    try:
        with open(path, encoding="utf-8") as file:  # noqa: PTH123 - pathlib is slow to import
            password = file.readline(10_000).rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not text"
        raise BadArgument(what=f"password file '{path}'", why=f"it can't be read ({why}).") from None
    if not password:
        raise BadArgument(what=f"password file '{path}'", why="its first line is empty.")
    return password


def prompt_password(prompt: str) -> str:
    """What somebody types at the terminal, unseen; raises NotAuthenticated where there is none."""
    if not sys.stdin.isatty():
        raise NotAuthenticated(
            text="A password is needed, and there is no terminal to ask for it. Use --password-file."
        )
    import getpass

    try:
        return getpass.getpass(prompt, stream=sys.stderr)
    except EOFError:
        raise NotAuthenticated(text="No password was given.") from None


def new_password(whose: str) -> str:
    """A new password, typed twice alike."""
    first = prompt_password(f"New password {whose}: ")
    if not first:
        raise BadArgument(what="password", why="it is empty.")
    if prompt_password("The same again: ") != first:
        raise BadArgument(what="password", why="it was not typed the same way twice.")
    return first
