"""The command that reruns the lessons."""

from minimoe.cli import arguments


def add_lessons(subparsers):
    """The command `lessons` and its options."""
    parser = arguments.command(subparsers, "lessons", run_lessons, "run the lessons in notebooks/ again, in place")
    parser.add_argument("names", nargs="*", metavar="NUMBER", help="only those whose names begin with it, such as 03")
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 if a lesson would change")


def run_lessons(options):
    """Run the lessons; status 1 if one fails, or would change and --check was given."""
    from minimoe.course import lessons
    return 0 if lessons.main(options.names, options.check) else 1
