#!/usr/bin/env bash
# A short demo must resume to the same bits. --validate leaves the test digits alone.
exec "$(dirname "$0")/check_resume.sh" demo --validate
