// Times as the reader's own clock and calendar have them.

const MINUTE = 60;
const HOUR = 3600;
const DAY = 86400;
const CLOCK = new Intl.DateTimeFormat("en-GB", { timeStyle: "medium" });
const DAY_AND_CLOCK = { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" };
const CALENDAR = new Intl.DateTimeFormat("en-GB", DAY_AND_CLOCK);
const WHOLE = new Intl.DateTimeFormat("en-GB", { dateStyle: "long", timeStyle: "long" });

/** How long ago, coarsely: `40 s`, `12 min`, `3 h`, `5 d`; empty if the time is not known. */
export function age(time, now = Date.now()) {
  if (!time) return "";
  const seconds = Math.max(0, Math.round((now - new Date(time)) / 1000));
  if (seconds < MINUTE) return `${seconds} s`;
  if (seconds < HOUR) return `${Math.floor(seconds / MINUTE)} min`;
  if (seconds < 2 * DAY) return `${Math.floor(seconds / HOUR)} h`;
  return `${Math.floor(seconds / DAY)} d`;
}

/** `14:03:05`, with the day if that is another one. */
export function clock(time, now = new Date()) {
  const date = new Date(time);
  return date.toDateString() === now.toDateString() ? CLOCK.format(date) : CALENDAR.format(date);
}

/** Day, time and time zone. */
export function whole(time) {
  return WHOLE.format(new Date(time));
}
