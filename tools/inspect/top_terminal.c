/* SPDX-License-Identifier: MIT */
/*
 * top_terminal.c - the terminal while `top` uses it.
 *
 * The picture stands on the alternate screen with keys unbuffered. What was changed is put back at
 * every exit: at the end, by signals that end the process, while it is stopped by ^Z, and when it
 * crashes.
 */
#include "top.h"

#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include "platform/os.h"

static struct termios saved_terminal;
static volatile sig_atomic_t terminal_is_changed, keys_are_changed, stop_asked, pause_asked;

/* Also called in signal handlers. */
void inspect_restore_terminal(void)
{
    static const char codes[] = "\033[?7h\033[?25h\033[?1049l";
    if (!terminal_is_changed)
        return;
    terminal_is_changed = 0;
    ssize_t ignored = write(STDOUT_FILENO, codes, sizeof(codes) - 1);
    (void)ignored;
    if (keys_are_changed)
        tcsetattr(STDIN_FILENO, TCSANOW, &saved_terminal);
    keys_are_changed = 0;
}

/* Alternate screen, no cursor, long lines cut; keys at once and unseen. */
static void change_terminal(void)
{
    struct termios raw;
    terminal_is_changed = 1;
    fputs("\033[?1049h\033[?25l\033[?7l", stdout);
    if (!isatty(STDIN_FILENO) || tcgetattr(STDIN_FILENO, &saved_terminal) < 0)
        return;
    raw = saved_terminal;
    raw.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
    raw.c_cc[VMIN] = 0, raw.c_cc[VTIME] = 0;
    keys_are_changed = 1;
    tcsetattr(STDIN_FILENO, TCSANOW, &raw);
}

static void on_signal(int signal)
{
    if (signal == SIGTSTP)
        pause_asked = 1;
    else if (signal != SIGWINCH)
        stop_asked = 1;
}

static void on_crash(int signal)
{
    inspect_restore_terminal();
    raise(signal); /* whose action is the default again */
}

void inspect_catch_signals(void)
{
    static const int ends[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGTSTP, SIGWINCH};
    static const int crashes[] = {SIGSEGV, SIGBUS, SIGABRT, SIGFPE, SIGILL};
    struct sigaction action = {.sa_handler = on_signal};
    for (size_t i = 0; i < sizeof(ends) / sizeof(ends[0]); i++)
        sigaction(ends[i], &action, NULL);
    action.sa_handler = on_crash;
    action.sa_flags = (int)SA_RESETHAND;
    for (size_t i = 0; i < sizeof(crashes) / sizeof(crashes[0]); i++)
        sigaction(crashes[i], &action, NULL);
}

/* ^Z: give the terminal back while stopped. */
static void pause_here(void)
{
    pause_asked = 0;
    inspect_restore_terminal();
    raise(SIGSTOP);
    change_terminal();
}

int inspect_wait(uint64_t until)
{
    uint64_t now;
    while (!stop_asked && (now = smi_os_clock()) < until) {
        struct pollfd keys = {STDIN_FILENO, POLLIN, 0};
        int ready = poll(&keys, keys_are_changed ? 1 : 0, (int)((until - now) / 1000000) + 1);
        char key = 0;
        if (pause_asked && terminal_is_changed) {
            pause_here();
            return 0;
        }
        if (ready < 0)
            return stop_asked; /* a signal: the window has another size */
        if (ready > 0 && read(STDIN_FILENO, &key, 1) != 1)
            return 1; /* the terminal is gone */
        if (key == 'q' || key == 'Q')
            return 1;
        if (key)
            return 0;
    }
    return stop_asked;
}

int inspect_take_terminal(void)
{
    const char *name = getenv("TERM");
    if (!isatty(STDOUT_FILENO) || !name || strcmp(name, "dumb") == 0)
        return 0;
    atexit(inspect_restore_terminal);
    change_terminal();
    return 1;
}

unsigned inspect_terminal_rows(void)
{
    struct winsize size = {0};
    if (!terminal_is_changed)
        return 0;
    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) < 0 || size.ws_row == 0)
        return 24;
    return size.ws_row;
}
