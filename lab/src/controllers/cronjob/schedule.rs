//! When a cron expression's times are: five fields, names, ranges, steps, and the usual abbreviations. Pure.

use jiff::civil::{Date, Time};
use jiff::{Span, Zoned};

/// How far ahead a time is looked for: 29 February comes within eight years.
const HORIZON_DAYS: i32 = 366 * 8;

const MONTHS: [&str; 12] =
    ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// The allowed values of each field, as bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// With both kinds of days restricted, either will do.
    days_are_free: Free,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Free {
    Neither,
    One,
}

impl Schedule {
    pub fn read(text: &str) -> Result<Self, String> {
        let expanded = match text.trim() {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            other => other,
        };
        let fields: Vec<&str> = expanded.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = fields[..] else {
            return Err(format!(
                "it has {} fields, a schedule has 5: minute, hour, day, month, weekday",
                fields.len()
            ));
        };
        let is_free = |field: &str| field.starts_with('*') || field.starts_with('?');
        let mut weekdays = field("weekday", weekday, 0, 7, &DAYS)?;
        // Both 0 and 7 are Sunday.
        weekdays |= weekdays >> 7 & 1;
        Ok(Self {
            minutes: field("minute", minute, 0, 59, &[])?,
            hours: field("hour", hour, 0, 23, &[])?,
            days: field("day", day, 1, 31, &[])?,
            months: field("month", month, 1, 12, &MONTHS)?,
            weekdays,
            days_are_free: if is_free(day) || is_free(weekday) { Free::One } else { Free::Neither },
        })
    }

    /// The first time after a moment.
    pub fn next_after(&self, moment: &Zoned) -> Option<Zoned> {
        let mut date = moment.date();
        for _ in 0..HORIZON_DAYS {
            if self.has_day(date)
                && let Some(found) = self.times(date, moment).find(|time| time > moment)
            {
                return Some(found);
            }
            date = date.tomorrow().ok()?;
        }
        None
    }

    /// The last time after `from` up to and including `to`: of several missed ones only the last is made up for.
    pub fn last_between(&self, from: &Zoned, to: &Zoned) -> Option<Zoned> {
        let mut date = to.date();
        while date >= from.date() {
            if self.has_day(date)
                && let Some(found) = self.times(date, to).filter(|time| time > from && time <= to).last()
            {
                return Some(found);
            }
            date = date.checked_sub(Span::new().days(1)).ok()?;
        }
        None
    }

    fn has_day(&self, date: Date) -> bool {
        let is = |set: u64, value: i8| set >> value & 1 == 1;
        let day = is(self.days, date.day());
        let weekday = is(self.weekdays, date.weekday().to_sunday_zero_offset());
        let either = match self.days_are_free {
            Free::One => day && weekday,
            Free::Neither => day || weekday,
        };
        is(self.months, date.month()) && either
    }

    /// The times of a day in order; those a clock change skips are not there.
    fn times<'a>(&'a self, date: Date, like: &'a Zoned) -> impl Iterator<Item = Zoned> + 'a {
        let allowed = |set: u64, up_to: i8| (0..up_to).filter(move |value| set >> value & 1 == 1);
        allowed(self.hours, 24).flat_map(move |hour| {
            allowed(self.minutes, 60).filter_map(move |minute| {
                let time = date.to_datetime(Time::new(hour, minute, 0, 0).ok()?);
                let zoned = time.to_zoned(like.time_zone().clone()).ok()?;
                (zoned.datetime() == time).then_some(zoned)
            })
        })
    }
}

fn field(what: &str, text: &str, least: u32, most: u32, names: &[&str]) -> Result<u64, String> {
    let mut set = 0;
    for part in text.split(',') {
        set |= part_of(part, least, most, names)
            .ok_or_else(|| format!("{what} {part:?} is not within {least}-{most}"))?;
    }
    Ok(set)
}

fn part_of(part: &str, least: u32, most: u32, names: &[&str]) -> Option<u64> {
    let (range, step) = match part.split_once('/') {
        Some((range, step)) => (range, step.parse::<u32>().ok().filter(|step| *step > 0)?),
        None => (part, 1),
    };
    let value = |text: &str| -> Option<u32> {
        let name = names.iter().position(|name| name.eq_ignore_ascii_case(text));
        let number = match name {
            Some(at) => u32::try_from(at).ok()? + least,
            None => text.parse().ok()?,
        };
        (least..=most).contains(&number).then_some(number)
    };
    let (from, to) = match (range, range.split_once('-')) {
        ("*" | "?", _) => (least, most),
        (_, Some((from, to))) => (value(from)?, value(to)?),
        // `5/10` runs on to the end.
        (_, None) if part.contains('/') => (value(range)?, most),
        (_, None) => (value(range)?, value(range)?),
    };
    if from > to {
        return None;
    }
    Some((from..=to).step_by(usize::try_from(step).ok()?).fold(0, |set, value| set | 1 << value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Zoned {
        text.parse().unwrap()
    }

    #[test]
    fn next_times_follow_the_fields() {
        let start = "2026-02-03T04:05:06+00:00[UTC]"; // a Tuesday
        let cases = [
            ("* * * * *", "2026-02-03T04:06:00"),
            ("*/15 * * * *", "2026-02-03T04:15:00"),
            ("5 4 * * *", "2026-02-04T04:05:00"),
            ("0 0 1 * *", "2026-03-01T00:00:00"),
            ("0 9 * * mon-fri", "2026-02-03T09:00:00"),
            ("0 9 * * 7", "2026-02-08T09:00:00"),
            ("30 6 13 * 5", "2026-02-06T06:30:00"),
            ("0 0 29 2 *", "2028-02-29T00:00:00"),
            ("10,20 5-7/2 * jun *", "2026-06-01T05:10:00"),
            ("@hourly", "2026-02-03T05:00:00"),
            ("50/3 * * * *", "2026-02-03T04:50:00"),
        ];
        for (schedule, expected) in cases {
            let next = Schedule::read(schedule).unwrap().next_after(&at(start)).unwrap();
            assert_eq!(next.datetime().to_string(), expected, "{schedule}");
        }
        assert_eq!(Schedule::read("0 0 30 2 *").unwrap().next_after(&at(start)), None, "never");
    }

    #[test]
    fn of_missed_times_only_the_last_counts() {
        let schedule = Schedule::read("*/10 * * * *").unwrap();
        let last = schedule
            .last_between(&at("2026-02-02T23:00:00+00:00[UTC]"), &at("2026-02-03T04:29:59+00:00[UTC]"));
        assert_eq!(last, Some(at("2026-02-03T04:20:00+00:00[UTC]")));
        let none = schedule
            .last_between(&at("2026-02-03T04:20:00+00:00[UTC]"), &at("2026-02-03T04:29:59+00:00[UTC]"));
        assert_eq!(none, None, "the time itself was used already");
    }

    #[test]
    fn errors_name_the_field_and_its_range() {
        for (text, word) in [
            ("* * * *", "4 fields"),
            ("60 * * * *", "minute"),
            ("* 24 * * *", "hour"),
            ("* * 0 * *", "day"),
            ("* * * 13 *", "month"),
            ("* * * * 8", "weekday"),
            ("*/0 * * * *", "minute"),
            ("9-5 * * * *", "minute"),
            ("", "0 fields"),
        ] {
            let error = Schedule::read(text).unwrap_err();
            assert!(error.contains(word), "{text:?}: {error}");
        }
    }
}
